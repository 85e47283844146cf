/// A bounds-checked cursor over the bytes of one GGUF file.
///
/// Nothing is read, and nothing allocated, before the bytes are known to be there; counts from the
/// file are compared with the bytes that remain before anything is done that many times.
struct GGUFReader {
    let bytes: GGUFBytes
    private(set) var offset: Int
    /// One past the last readable byte.
    let end: Int

    init(_ bytes: GGUFBytes, range: Range<Int>? = nil) {
        self.bytes = bytes
        offset = range?.lowerBound ?? 0
        end = range?.upperBound ?? bytes.buffer.count
    }

    var remaining: Int { end - offset }

    /// Reads one little-endian integer.
    mutating func integer<T: FixedWidthInteger>(
        _ type: T.Type, _ subject: @autoclosure () -> String
    ) throws(GGUFError) -> T {
        let start = offset
        try skip(T.bitWidth / 8, subject())
        return T(littleEndian: bytes.buffer.loadUnaligned(fromByteOffset: start, as: T.self))
    }

    /// Reads a 64-bit length and then that many bytes; returns the range of the bytes.
    mutating func lengthAndBytes(
        limit: Int = .max, _ subject: @autoclosure () -> String
    ) throws(GGUFError) -> Range<Int> {
        let start = offset
        let length = try integer(UInt64.self, subject())
        guard length <= UInt64(remaining) else {
            throw error(
                .truncated, at: start, subject(),
                expected: "a length within the \(remaining) bytes that follow",
                found: "a length of \(length) bytes")
        }
        guard length <= UInt64(limit) else {
            throw error(
                .malformed, at: start, subject(), expected: "a length of at most \(limit) bytes",
                found: "a length of \(length) bytes")
        }
        offset += Int(length)
        return offset - Int(length)..<offset
    }

    /// Reads a length-prefixed name: not empty, at most 65535 bytes (the format's limit for keys),
    /// valid UTF-8.
    mutating func name(_ subject: @autoclosure () -> String) throws(GGUFError) -> String {
        let start = offset
        let range = try lengthAndBytes(limit: 65535, subject())
        guard !range.isEmpty else {
            throw error(.malformed, at: start, subject(), expected: "a name", found: "no bytes")
        }
        let slice = UnsafeRawBufferPointer(rebasing: bytes.buffer[range])
        guard let name = String(validating: slice, as: UTF8.self) else {
            throw error(
                .malformed, at: range.lowerBound, subject(), expected: "UTF-8 text",
                found: quoted(String(decoding: slice, as: UTF8.self)))
        }
        return name
    }

    /// Reads how many items follow, each of at least `minimumSize` bytes.
    mutating func count(
        minimumSize: Int, _ subject: @autoclosure () -> String
    ) throws(GGUFError) -> Int {
        let start = offset
        let count = try integer(UInt64.self, subject())
        let most = remaining / minimumSize
        guard count <= UInt64(most) else {
            throw error(
                .truncated, at: start, subject(),
                expected: "at most \(most) (\(remaining) bytes follow, \(minimumSize) or more each)",
                found: "\(count)")
        }
        return Int(count)
    }

    mutating func skip(
        _ byteCount: Int, _ subject: @autoclosure () -> String
    ) throws(GGUFError) {
        guard byteCount <= remaining else {
            throw error(
                .truncated, at: offset, subject(), expected: "\(byteCount) bytes",
                found: end == bytes.buffer.count
                    ? "the end of the file after \(remaining)" : "only \(remaining)")
        }
        offset += byteCount
    }

    func error(
        _ kind: GGUFError.Kind, at offset: Int, _ subject: String, expected: String, found: String
    ) -> GGUFError {
        GGUFError(
            kind: kind, file: bytes.path, offset: offset, subject: subject, expected: expected,
            found: found)
    }
}
