/// An opened GGUF file, or all parts of a split one: its metadata and where its tensors are.
///
/// Opening reads and checks the header only. The data stays in the file and is mapped; it is
/// unmapped when this object and every `GGUFValue` taken from it are gone.
public final class GGUFFile: Sendable {
    /// GGUF version of the (first) file, 2 or 3.
    public let version: UInt32
    /// Tensor data starts at multiples of this many bytes; of the first part.
    public let alignment: Int
    /// In file order; of the first part, where a split model has all that matters.
    public let metadata: [GGUFEntry]
    /// In file order, part by part.
    public let tensors: [GGUFTensor]
    /// The file, or all parts in order.
    public let paths: [String]
    /// Bytes of all parts together.
    public let byteCount: Int

    private let parts: [GGUFBytes]
    private let indexByKey: [String: Int]
    private let indexByName: [String: Int]

    /// Opens the file at `path`; of a split model, the first part, which brings the others.
    ///
    /// - Throws: `GGUFError`, naming file, byte offset, what was expected and what was found.
    public convenience init(path: String) throws(GGUFError) {
        try self.init(path: path) { path throws(GGUFError) in try GGUFBytes(mapping: path) }
    }

    /// Reads files held in memory, by path; for tests and fuzzing.
    package convenience init(path: String, in files: [String: [UInt8]]) throws(GGUFError) {
        try self.init(path: path) { path throws(GGUFError) in
            guard let bytes = files[path] else {
                throw GGUFError(
                    kind: .notFound, file: path, offset: nil, subject: "file",
                    expected: "a readable GGUF file", found: "No such file or directory")
            }
            return GGUFBytes(copying: bytes, path: path)
        }
    }

    private init(
        path: String, open: (String) throws(GGUFError) -> GGUFBytes
    ) throws(GGUFError) {
        let first = try GGUFPart(try open(path))
        let parts = [first] + (try GGUFSplit.remainingParts(after: first, path: path, open: open))
        var tensors: [GGUFTensor] = []
        var indexByName: [String: Int] = [:]
        for (fileIndex, part) in parts.enumerated() {
            for tensor in part.tensors(fileIndex: fileIndex) {
                // Within one part the directory has no doubles; this is for parts against parts.
                if let other = indexByName.updateValue(tensors.count, forKey: tensor.name) {
                    throw GGUFError(
                        kind: .duplicateName, file: part.bytes.path, offset: tensor.fileOffset,
                        subject: "tensor \(quoted(tensor.name))", expected: "one in all parts",
                        found: "another in \(parts[tensors[other].fileIndex].bytes.path)")
                }
                tensors.append(tensor)
            }
        }
        version = first.version
        alignment = first.alignment
        metadata = first.metadata
        indexByKey = first.indexByKey
        self.tensors = tensors
        self.indexByName = indexByName
        self.parts = parts.map(\.bytes)
        paths = parts.map(\.bytes.path)
        byteCount = parts.reduce(0) { $0 + $1.bytes.buffer.count }
    }

    /// The tensor called `name`, or nil.
    public func tensor(_ name: String) -> GGUFTensor? { indexByName[name].map { tensors[$0] } }

    /// The metadata value of `key`, or nil.
    public func value(_ key: String) -> GGUFValue? { indexByKey[key].map { metadata[$0].value } }
}

/// Typed look-ups. Each throws `wrongType` (naming key, expected and found type) when the value is
/// of another type, and `missingKey` when there is none and no default was given.
extension GGUFFile {
    /// A non-negative integer, whatever width and signedness it is stored with.
    public func uint(_ key: String) throws(GGUFError) -> Int {
        try required(key, "an unsigned integer").uint()
    }

    public func uint(_ key: String, default other: Int) throws(GGUFError) -> Int {
        try value(key)?.uint() ?? other
    }

    public func float(_ key: String) throws(GGUFError) -> Double {
        try required(key, "a floating-point number").float()
    }

    public func float(_ key: String, default other: Double) throws(GGUFError) -> Double {
        try value(key)?.float() ?? other
    }

    public func bool(_ key: String) throws(GGUFError) -> Bool {
        try required(key, "a bool").bool()
    }

    public func bool(_ key: String, default other: Bool) throws(GGUFError) -> Bool {
        try value(key)?.bool() ?? other
    }

    public func string(_ key: String) throws(GGUFError) -> String {
        try required(key, "a string").string()
    }

    public func string(_ key: String, default other: String) throws(GGUFError) -> String {
        try value(key)?.string() ?? other
    }

    public func uintArray(_ key: String) throws(GGUFError) -> [Int] {
        try required(key, "an array of unsigned integers").uintArray()
    }

    public func intArray(_ key: String) throws(GGUFError) -> [Int] {
        try required(key, "an array of integers").intArray()
    }

    public func floatArray(_ key: String) throws(GGUFError) -> [Double] {
        try required(key, "an array of floating-point numbers").floatArray()
    }

    public func stringArray(_ key: String) throws(GGUFError) -> [String] {
        try required(key, "an array of strings").stringArray()
    }

    private func required(_ key: String, _ expected: String) throws(GGUFError) -> GGUFValue {
        guard let value = value(key) else {
            throw GGUFError(
                kind: .missingKey, file: paths[0], offset: nil,
                subject: "metadata \(quoted(key))", expected: expected, found: "no such key")
        }
        return value
    }
}
