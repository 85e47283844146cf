/// Why a GGUF file cannot be used.
///
/// Every error says which file, where in it, what was expected there and what was found, because
/// the person reading it has an 80 GB download in front of them and one question: is it broken, is
/// it the wrong file, or is it too new.
public struct GGUFError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The failures a caller may want to tell apart; each can become a status of its own.
    public enum Kind: String, CaseIterable, Sendable {
        /// No such file.
        case notFound
        /// The file exists and cannot be opened or mapped.
        case unreadable
        /// A directory, pipe, socket or device.
        case notARegularFile
        /// The file ends before what it announces.
        case truncated
        /// The first four bytes are not `GGUF`.
        case notGGUF
        /// GGUF, but a version, byte order or tensor type this reader does not know.
        case unsupported
        /// A field holds a value the format does not allow.
        case malformed
        /// Two metadata keys or two tensors share a name.
        case duplicateName
        /// A tensor's data is misaligned, out of bounds or overlaps another's.
        case tensorLayout
        /// A part of a split file is missing, misnamed, or belongs elsewhere.
        case splitPart
        /// The metadata lacks a key that was asked for.
        case missingKey
        /// A metadata value has another type, or another range, than was asked for.
        case wrongType
    }

    public let kind: Kind
    /// Path of the file (of the part, when the model is split).
    public let file: String
    /// Byte offset in `file` of the field at fault; nil where the fault has no place in the file.
    public let offset: Int?
    /// The field or thing at fault, such as `tensor 'output.weight', offset`.
    public let subject: String
    public let expected: String
    public let found: String

    public var description: String {
        let place = offset.map { "byte \($0): " } ?? ""
        return "\(file): \(place)\(subject): expected \(expected), found \(found)"
    }
}

/// Text from the file as it may appear in a message: control characters escaped, so that a hostile
/// name cannot drive the terminal, and cut at `limit` characters.
func quoted(_ text: String, limit: Int = 80) -> String {
    var result = "'"
    var length = 0
    for scalar in text.unicodeScalars {
        if length == limit {
            result += "…"
            break
        }
        result += scalar.escaped(asASCII: false)
        length += 1
    }
    return result + "'"
}
