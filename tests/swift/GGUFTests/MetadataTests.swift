import GGUF
import GGUFFuzz
import Testing

@Suite struct MetadataTests {
    /// One entry `k` with `value`, opened.
    private func entry(_ value: GGUFBuilder.Value) throws -> GGUFValue {
        var builder = GGUFBuilder()
        builder.add("k", value)
        return try #require(try open(builder).value("k"))
    }

    private func openFailure(_ value: GGUFBuilder.Value) throws -> GGUFError {
        var builder = GGUFBuilder()
        builder.add("k", value)
        return try failure { () throws(GGUFError) in try open(builder) }
    }

    // MARK: Numbers

    @Test(arguments: [
        (.uint8(.max), 255), (.int8(.max), 127), (.uint16(.max), 65535), (.int16(.max), 32767),
        (.uint32(.max), 4_294_967_295), (.int32(.max), 2_147_483_647),
        (.uint64(UInt64(Int.max)), .max), (.int64(.max), .max), (.uint8(0), 0), (.int64(0), 0),
    ] as [(GGUFBuilder.Value, Int)])
    func unsignedIntegerOfAnyWidthReads(value: GGUFBuilder.Value, expected: Int) throws {
        #expect(try entry(value).uint() == expected)
        #expect(try entry(value).int() == expected)
    }

    @Test(arguments: [
        (.int8(.min), -128), (.int16(.min), -32768), (.int32(.min), -2_147_483_648),
        (.int64(.min), .min),
    ] as [(GGUFBuilder.Value, Int)])
    func negativeIntegerReadsAsIntOnly(value: GGUFBuilder.Value, expected: Int) throws {
        let value = try entry(value)
        #expect(try value.int() == expected)
        let error = try failure { () throws(GGUFError) in try value.uint() }
        #expect(error.kind == .wrongType)
        #expect(error.found == "\(expected)")
    }

    @Test func unsignedIntegerAboveInt64IsRefusedNotWrapped() throws {
        let value = try entry(.uint64(1 << 63))
        let error = try failure { () throws(GGUFError) in try value.uint() }
        #expect(error.expected == "an integer below 2^63")
        #expect(error.found == "9223372036854775808")
    }

    @Test func floatsOfBothWidthsRead() throws {
        #expect(try entry(.float32(0.1)).float() == Double(Float(0.1)))
        #expect(try entry(.float64(0.1)).float() == 0.1)
        #expect(try entry(.float64(.nan)).float().isNaN)
        #expect(try entry(.array(6, [.float32(1), .float32(-2)])).floatArray() == [1, -2])
        #expect(try entry(.array(12, [.float64(0.1)])).floatArray() == [0.1])
    }

    @Test(arguments: [true, false])
    func boolReads(flag: Bool) throws {
        #expect(try entry(.bool(flag)).bool() == flag)
        #expect(try entry(.array(7, [.bool(flag), .bool(!flag)])).boolArray() == [flag, !flag])
    }

    @Test func boolOtherThanZeroOrOneIsMalformed() throws {
        let error = try openFailure(.raw(7, [2]))
        #expect(error.kind == .malformed)
        #expect(error.found == "2")
        let array = try entry(.array(7, [.bool(true), .raw(7, [3])]))
        let late = try failure { () throws(GGUFError) in try array.boolArray() }
        #expect(late.offset == array.offset + 1)
    }

    // MARK: Strings

    @Test(arguments: ["", "text", "Ġ｜DSML｜", "a\0b", String(repeating: "x", count: 70000)])
    func stringReads(text: String) throws {
        #expect(try entry(.string(text)).string() == text)
        #expect(try entry(.string(text)).withBytes { $0.elementsEqual(text.utf8) })
    }

    @Test func stringThatIsNotUTF8IsRefusedAndItsBytesStayReadable() throws {
        let value = try entry(.raw(8, [3, 0, 0, 0, 0, 0, 0, 0, 0x61, 0xff, 0x62]))
        #expect(value.withBytes { $0.elementsEqual([0x61, 0xff, 0x62]) })
        let error = try failure { () throws(GGUFError) in try value.string() }
        #expect(error.kind == .malformed)
        #expect(error.offset == value.offset)
        #expect(error.expected == "UTF-8 text")
    }

    @Test(arguments: [6, 1 << 40, UInt64(Int.max), UInt64.max])
    func stringLengthBeyondTheFileIsTruncated(length: UInt64) throws {
        let bytes = withUnsafeBytes(of: length.littleEndian) { Array($0) }
        let error = try openFailure(.raw(8, bytes + Array("hello".utf8)))
        #expect(error.kind == .truncated)
        #expect(error.found.contains("\(length)"))
    }

    // MARK: Arrays

    @Test func arraysAreLeftInTheFileUntilAsked() throws {
        let value = try entry(.strings(["a", "", "long enough to see"]))
        #expect(value.type == .array && value.elementType == .string && value.count == 3)
        let byteCount = value.withBytes(\.count)
        #expect(byteCount == 3 * 8 + 1 + 18)
        #expect(try value.stringArray() == ["a", "", "long enough to see"])
        var seen: [[UInt8]] = []
        try value.forEachString { seen.append(Array($0)) }
        #expect(seen.map { String(decoding: $0, as: UTF8.self) } == (try value.stringArray()))
    }

    @Test(arguments: [
        (.array(0, [.uint8(1), .uint8(255)]), [1, 255]), (.array(5, [.int32(7)]), [7]),
        (.array(10, [.uint64(8)]), [8]), (.array(4, []), []), (.array(3, [.int16(9)]), [9]),
    ] as [(GGUFBuilder.Value, [Int])])
    func integerArrayOfAnyWidthReads(value: GGUFBuilder.Value, expected: [Int]) throws {
        #expect(try entry(value).uintArray() == expected)
        #expect(try entry(value).intArray() == expected)
    }

    @Test func negativeElementIsNamedByItsOffset() throws {
        let value = try entry(.array(5, [.int32(1), .int32(-1)]))
        #expect(try value.intArray() == [1, -1])
        let error = try failure { () throws(GGUFError) in try value.uintArray() }
        #expect(error.offset == value.offset + 4)
        #expect(error.found == "-1")
    }

    @Test func nestedArraysRead() throws {
        let value = try entry(.array(9, [.array(4, [.uint32(5)]), .strings(["x"]), .array(9, [])]))
        let inner = try value.arrays()
        #expect(inner.map(\.elementType) == [.uint32, .string, .array])
        #expect(try inner[0].uintArray() == [5])
        #expect(try inner[1].stringArray() == ["x"])
        #expect(inner[1].name == "k[1]")
    }

    private func nested(_ depth: Int) -> GGUFBuilder.Value {
        depth == 1 ? .array(0, [.uint8(1)]) : .array(9, [nested(depth - 1)])
    }

    @Test func eightNestedArraysAreTheLimit() throws {
        #expect(try entry(nested(8)).count == 1)
        let error = try openFailure(nested(9))
        #expect(error.kind == .malformed)
        #expect(error.expected.contains("at most 8"))
    }

    @Test func deeplyNestedArraysDoNotExhaustTheStack() throws {
        // Built by hand: each level is type 9, count 1.
        let level: [UInt8] = [9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
        let payload = [[UInt8]](repeating: level, count: 200_000).flatMap { $0 }
        #expect(try openFailure(.raw(9, payload)).kind == .malformed)
    }

    @Test(arguments: [0, 8, 9, 10] as [UInt32], [4, 1 << 40, 1 << 61, UInt64.max] as [UInt64])
    func arrayCountBeyondTheFileIsTruncated(type: UInt32, count: UInt64) throws {
        let header = withUnsafeBytes(of: type.littleEndian) { Array($0) }
            + withUnsafeBytes(of: count.littleEndian) { Array($0) }
        let error = try openFailure(.raw(9, header + [0, 0, 0]))
        #expect(error.kind == .truncated)
        #expect(error.found == "\(count)")
    }

    @Test func stringInAnArrayThatRunsOutOfTheFileIsNamedByIndex() throws {
        let error = try openFailure(.array(8, [.string("a"), .raw(8, [200, 0, 0, 0, 0, 0, 0, 0])]))
        #expect(error.kind == .truncated)
        #expect(error.subject == "string 'k'[1]")
    }

    @Test(arguments: [13, 99, UInt32.max])
    func unknownValueTypeIsMalformed(type: UInt32) throws {
        #expect(try openFailure(.raw(type, [0, 0, 0, 0])).kind == .malformed)
        #expect(try openFailure(.array(type, [])).subject == "array 'k', element type")
    }

    // MARK: Keys and typed look-ups

    @Test func repeatedKeyIsRejected() throws {
        var builder = GGUFBuilder()
        builder.add("k", .uint8(1))
        builder.add("k", .uint8(2))
        let error = try failure { () throws(GGUFError) in try open(builder) }
        #expect(error.kind == .duplicateName)
        #expect(error.found == "'k'")
    }

    @Test(arguments: [[], [0xff, 0xfe]] as [[UInt8]])
    func keyThatIsEmptyOrNotUTF8IsMalformed(key: [UInt8]) throws {
        var builder = GGUFBuilder()
        builder.add(keyBytes: key, .uint32(1))
        #expect(try failure { () throws(GGUFError) in try open(builder) }.kind == .malformed)
    }

    @Test func keyLongerThanTheFormatAllowsIsMalformed() throws {
        var builder = GGUFBuilder()
        builder.add(String(repeating: "k", count: 65535), .uint8(1))
        _ = try open(builder)
        builder = GGUFBuilder()
        builder.add(String(repeating: "k", count: 65536), .uint8(1))
        let error = try failure { () throws(GGUFError) in try open(builder) }
        #expect(error.expected == "a length of at most 65535 bytes")
    }

    @Test func hostileNamesAreEscapedAndCutInMessages() throws {
        var builder = GGUFBuilder()
        builder.add("\u{1b}[2J" + String(repeating: "x", count: 500), .raw(99, []))
        let error = try failure { () throws(GGUFError) in try open(builder) }
        #expect(!error.description.unicodeScalars.contains("\u{1b}"))
        #expect(error.description.utf8.count < 300)
    }

    @Test func lookUpsNameKeyExpectedAndFoundType() throws {
        var builder = GGUFBuilder()
        builder.add("number", .uint32(3))
        builder.add("text", .string("x"))
        builder.add("list", .array(6, []))
        let file = try open(builder)
        let cases: [(GGUFError, String, String)] = [
            (try failure { () throws(GGUFError) in try file.uint("text") },
             "an unsigned integer", "string"),
            (try failure { () throws(GGUFError) in try file.float("number") },
             "a floating-point number", "uint32"),
            (try failure { () throws(GGUFError) in try file.string("list") },
             "a string", "array of float32"),
            (try failure { () throws(GGUFError) in try file.bool("number") }, "a bool", "uint32"),
            (try failure { () throws(GGUFError) in try file.uintArray("list") },
             "an array of unsigned integers", "array of float32"),
            (try failure { () throws(GGUFError) in try file.floatArray("number") },
             "an array of floating-point numbers", "uint32"),
            (try failure { () throws(GGUFError) in try file.stringArray("list") },
             "an array of strings", "array of float32"),
        ]
        for (error, expected, found) in cases {
            #expect(error.kind == .wrongType)
            #expect(error.expected == expected)
            #expect(error.found == found)
            #expect(error.offset != nil)
        }
        let error = try failure { () throws(GGUFError) in try file.uint("absent") }
        #expect(error.kind == .missingKey)
        #expect(error.subject == "metadata 'absent'")
    }

    @Test func defaultsServeForMissingKeysAndNotForWrongTypes() throws {
        var builder = GGUFBuilder()
        builder.add("number", .uint32(3))
        let file = try open(builder)
        #expect(try file.uint("number", default: 7) == 3)
        #expect(try file.uint("absent", default: 7) == 7)
        #expect(try file.float("absent", default: 0.5) == 0.5)
        #expect(try file.bool("absent", default: true))
        #expect(try file.string("absent", default: "x") == "x")
        #expect(
            try failure { () throws(GGUFError) in try file.bool("number", default: true) }.kind
                == .wrongType)
    }

    @Test func valueOutlivesTheFileItCameFrom() throws {
        let directory = try TemporaryDirectory()
        var builder = GGUFBuilder()
        builder.add("k", .strings(["still", "here"]))
        let path = try directory.write(builder.bytes(), "m.gguf")
        var file: GGUFFile? = try GGUFFile(path: path)
        let value = try #require(file?.value("k"))
        file = nil
        #expect(try value.stringArray() == ["still", "here"])
    }
}
