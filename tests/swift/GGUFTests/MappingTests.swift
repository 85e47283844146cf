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

/// What can be wrong with a path, and what opening a file touches.
@Suite struct MappingTests {
    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func openFailure(_ path: String) throws -> GGUFError {
        try failure { () throws(GGUFError) in try GGUFFile(path: path) }
    }

    @Test func missingFileIsNotFound() throws {
        let path = directory.path + "/absent.gguf"
        let error = try openFailure(path)
        #expect(error.kind == .notFound)
        #expect(error.description.hasPrefix("\(path): file: expected"))
        #expect(try openFailure(path + "/below").kind == .notFound)
    }

    @Test func directoryPipeAndDeviceAreNotRegularFiles() throws {
        let error = try openFailure(directory.path)
        #expect(error.kind == .notARegularFile)
        #expect(error.found == "a directory")
        let pipe = directory.path + "/pipe"
        try #require(mkfifo(pipe, 0o600) == 0)
        #expect(try openFailure(pipe).found == "a pipe")
        #expect(try openFailure("/dev/null").found == "a device")
    }

    @Test func emptyFileIsTruncated() throws {
        let error = try openFailure(try directory.write([], "empty.gguf"))
        #expect(error.kind == .truncated)
        #expect(error.found == "an empty file")
    }

    @Test(.enabled(if: geteuid() != 0, "root may read everything"))
    func unreadableFileIsUnreadable() throws {
        let path = try directory.write(GGUFBuilder().bytes(), "secret.gguf")
        try #require(chmod(path, 0) == 0)
        #expect(try openFailure(path).kind == .unreadable)
    }

    @Test func partsOnDiskOpenTogether() throws {
        var path = ""
        for i in (0..<2).reversed() {
            var builder = GGUFBuilder()
            builder.add("split.no", .uint16(UInt16(i)))
            builder.add("split.count", .uint16(2))
            builder.addTensor("t\(i)", [2], type: 0, byteCount: 8)
            path = try directory.write(builder.bytes(), "m-0000\(i + 1)-of-00002.gguf")
        }
        let file = try GGUFFile(path: path)
        defer { withExtendedLifetime(file) {} }
        #expect(file.tensors.map(\.name) == ["t0", "t1"])
        #expect(file.tensors[1].pointer.load(fromByteOffset: 7, as: UInt8.self) == 8)
    }

    /// The 43 layers of Flash: 1328 tensors, 129280 tokens, 80.8 GiB of which the file holds only
    /// the header; the rest is a hole. Were the data read, the pages would show as resident.
    @Test func openingATensorOf80GiBTouchesOnlyTheHeader() throws {
        var builder = GGUFBuilder()
        builder.add("tokenizer.ggml.tokens", .strings((0..<129_280).map { "token \($0)" }))
        let bytesPerTensor = 66 << 20
        for i in 0..<1328 {
            builder.addTensor(
                "blk.\(i)", [256, 1 << 20], type: 16, byteCount: 0,
                offset: UInt64(i * bytesPerTensor))
        }
        let (bytes, _, headerByteCount) = builder.build()
        let size = headerByteCount + 32 + 1328 * bytesPerTensor
        let path = try directory.write(bytes, "flash.gguf", extendedTo: size)

        let file = try GGUFFile(path: path)
        #expect(file.tensors.count == 1328 && file.byteCount == size)
        #expect(try #require(file.value("tokenizer.ggml.tokens")).count == 129_280)
        #expect(try residentDataPages(file) == 0)
    }

    /// Resident pages among the first of each tensor.
    private func residentDataPages(_ file: GGUFFile) throws -> Int {
        defer { withExtendedLifetime(file) {} }
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        var count = 0
        for tensor in file.tensors.dropFirst() {
            let start = UnsafeMutableRawPointer(
                bitPattern: UInt(bitPattern: tensor.pointer) / UInt(page) * UInt(page))!
            #if canImport(Darwin)
            var state: CChar = 0
            #else
            var state: UInt8 = 0
            #endif
            try #require(mincore(start, page, &state) == 0)
            count += Int(state & 1)
        }
        return count
    }
}
