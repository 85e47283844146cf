import GGUF
import GGUFFuzz
import Testing

@Suite struct HeaderTests {
    @Test(arguments: [UInt32(2), 3])
    func versionsTwoAndThreeOpen(version: UInt32) throws {
        var builder = GGUFBuilder()
        builder.version = version
        #expect(try open(builder).version == version)
    }

    @Test func fileWithoutMetadataOrTensorsOpens() throws {
        let file = try open(GGUFBuilder())
        #expect(file.metadata.isEmpty && file.tensors.isEmpty)
        #expect(file.alignment == 32)
        #expect(file.byteCount == 24)
    }

    @Test(arguments: [
        (1, "an early format"), (0, "found 0"), (4, "found 4"), (0x0300_0000, "3 in big-endian"),
        (0x0200_0000, "2 in big-endian"), (UInt32.max, "4294967295"),
    ] as [(UInt32, String)])
    func otherVersionsAreUnsupported(version: UInt32, hint: String) throws {
        var builder = GGUFBuilder()
        builder.version = version
        let error = try failure { () throws(GGUFError) in try open(builder) }
        #expect(error.kind == .unsupported)
        #expect(error.offset == 4)
        #expect(error.description.contains(hint))
    }

    @Test(arguments: [
        ("version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("<!DOCTYPE html><html>", "web page"), ("tjgg\u{1}\u{0}\u{0}\u{0}", "older than GGUF"),
        ("PK\u{3}\u{4}............", "zip archive"), ("GGUG", "'GGUG'"), ("x", "'x'"),
    ])
    func wrongMagicIsNamedWithAHint(text: String, hint: String) throws {
        let error = try failure { () throws(GGUFError) in try open(Array(text.utf8)) }
        #expect(error.kind == .notGGUF)
        #expect(error.offset == 0)
        #expect(error.description.contains(hint), "\(error)")
    }

    @Test func unprintableMagicIsShownAsBytes() throws {
        let error = try failure { () throws(GGUFError) in try open([0, 0x1b, 255, 7, 1]) }
        #expect(error.found == "bytes 00 1b ff 07")
    }

    @Test(arguments: 1..<24)
    func headerCutShortIsTruncated(length: Int) throws {
        let bytes = Array(GGUFBuilder().bytes().prefix(length))
        #expect(try failure { () throws(GGUFError) in try open(bytes) }.kind == .truncated)
    }

    @Test func everyTruncationOfAValidHeaderIsAnError() throws {
        var builder = GGUFBuilder()
        builder.add("general.name", .string("n"))
        builder.add("list", .strings(["a", "bc"]))
        builder.add("pairs", .array(9, [.array(4, [.uint32(1)])]))
        builder.addTensor("t", [4, 2], type: 0, byteCount: 32)
        let bytes = builder.bytes()
        _ = try open(bytes)
        for length in 0..<bytes.count {
            let error = try failure { () throws(GGUFError) in try open(Array(bytes[..<length])) }
            #expect([.truncated, .tensorLayout].contains(error.kind), "\(length): \(error)")
            #expect((0...length).contains(error.offset ?? -1), "\(length): \(error)")
        }
    }

    @Test(arguments: [2, 1 << 40, UInt64(Int.max), UInt64.max])
    func tensorCountBeyondTheFileIsRejectedBeforeAnythingIsAllocated(count: UInt64) throws {
        var builder = GGUFBuilder()
        builder.tensorCount = count
        builder.addTensor("t", [1], type: 0, byteCount: 4)
        let error = try failure { () throws(GGUFError) in try open(builder) }
        #expect(error.kind == .truncated)
        #expect(error.offset == 8 || count == 2)
        #expect(error.description.contains("tensor"))
    }

    @Test(arguments: [2, 1 << 40, UInt64(Int.max), UInt64.max])
    func metadataCountBeyondTheFileIsRejectedBeforeAnythingIsAllocated(count: UInt64) throws {
        var builder = GGUFBuilder()
        builder.metadataCount = count
        builder.add("k", .uint8(1))
        let error = try failure { () throws(GGUFError) in try open(builder) }
        #expect(error.kind == .truncated)
        #expect(error.offset == 16)
        #expect(error.subject == "metadata count")
    }

    @Test func errorsNameFileOffsetExpectationAndFinding() throws {
        var builder = GGUFBuilder()
        builder.version = 9
        let error = try failure { () throws(GGUFError) in try open(builder) }
        #expect(error.description == "m.gguf: byte 4: version: expected 2 or 3, found 9")
    }
}
