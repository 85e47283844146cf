import GGUF
import GGUFFuzz
import Testing

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// Opens what `builder` describes, from memory.
func open(_ builder: GGUFBuilder) throws(GGUFError) -> GGUFFile {
    try GGUFFile(path: "m.gguf", in: ["m.gguf": builder.bytes()])
}

func open(_ bytes: [UInt8]) throws(GGUFError) -> GGUFFile {
    try GGUFFile(path: "m.gguf", in: ["m.gguf": bytes])
}

/// The error that `body` throws; a test failure if it throws none.
func failure(
    _ body: () throws(GGUFError) -> some Any, _ location: SourceLocation = #_sourceLocation
) throws -> GGUFError {
    do {
        _ = try body()
    } catch {
        return error
    }
    Issue.record("no error was thrown", sourceLocation: location)
    throw CancellationError()
}

/// A directory that is removed with everything in it when the object goes.
final class TemporaryDirectory {
    let path: String

    init() throws {
        var template = Array("/tmp/gguf-tests-XXXXXX".utf8CString)
        try #require(mkdtemp(&template) != nil)
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit {
        if let directory = opendir(path) {
            while let entry = readdir(directory) {
                let name = withUnsafeBytes(of: entry.pointee.d_name) {
                    String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
                }
                if name != "." && name != ".." { unlink(path + "/" + name) }
            }
            closedir(directory)
        }
        rmdir(path)
    }

    /// Writes a file, then extends it with a hole to `size` bytes, if given; returns its path.
    func write(_ bytes: [UInt8], _ name: String, extendedTo size: Int? = nil) throws -> String {
        let file = path + "/" + name
        let descriptor = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        try #require(descriptor >= 0)
        defer { close(descriptor) }
        let written = bytes.withUnsafeBytes { writeAll(descriptor, $0) }
        try #require(written == bytes.count)
        if let size { try #require(ftruncate(descriptor, off_t(size)) == 0) }
        return file
    }
}

private func writeAll(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer) -> Int {
    write(descriptor, bytes.baseAddress, bytes.count)
}
