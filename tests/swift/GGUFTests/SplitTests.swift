import GGUF
import GGUFFuzz
import Testing

@Suite struct SplitTests {
    private func name(_ number: Int, of count: Int = 3) -> String {
        "dir/m-0000\(number)-of-0000\(count).gguf"
    }

    /// Three parts with one tensor each.
    private func builders() -> [String: GGUFBuilder] {
        var result: [String: GGUFBuilder] = [:]
        for i in 0..<3 {
            var builder = GGUFBuilder()
            builder.add("split.no", .uint16(UInt16(i)))
            builder.add("split.count", .uint16(3))
            builder.add("split.tensors.count", .int32(3))
            builder.add("general.name", .string("part \(i)"))
            builder.addTensor("t\(i)", [UInt64(i + 1)], type: 0, byteCount: 4 * (i + 1))
            result[name(i + 1)] = builder
        }
        return result
    }

    private func openParts(
        _ builders: [String: GGUFBuilder], path: String? = nil
    ) throws(GGUFError) -> GGUFFile {
        try GGUFFile(path: path ?? name(1), in: builders.mapValues { $0.bytes() })
    }

    @Test func firstPartBringsTheOthers() throws {
        let file = try openParts(builders())
        #expect(file.paths == [name(1), name(2), name(3)])
        #expect(file.tensors.map(\.name) == ["t0", "t1", "t2"])
        #expect(file.tensors.map(\.fileIndex) == [0, 1, 2])
        #expect(file.tensor("t2")?.shape == [3])
        #expect(try file.string("general.name") == "part 0")
        #expect(file.byteCount == builders().values.reduce(0) { $0 + $1.bytes().count })
    }

    @Test(arguments: [2, 3])
    func otherPartSaysWhichToOpen(number: Int) throws {
        let error = try failure { () throws(GGUFError) in
            try openParts(builders(), path: name(number))
        }
        #expect(error.kind == .splitPart)
        #expect(error.expected.contains(name(1)))
        #expect(error.found == "part \(number)")
    }

    @Test(arguments: [2, 3])
    func missingPartIsNamed(number: Int) throws {
        var parts = builders()
        parts[name(number)] = nil
        let error = try failure { () throws(GGUFError) in try openParts(parts) }
        #expect(error.kind == .splitPart)
        #expect(error.file == name(number))
        #expect(error.subject == "part \(number) of 3")
    }

    @Test func damagedPartIsNamed() throws {
        var files = builders().mapValues { $0.bytes() }
        files[name(2)]![0] = 0
        let error = try failure { () throws(GGUFError) in
            try GGUFFile(path: name(1), in: files)
        }
        #expect(error.kind == .notGGUF)
        #expect(error.file == name(2))
    }

    @Test(arguments: ["m.gguf", "m-00001-of-00004.gguf", "m-00002-of-00003.gguf",
                      "m-0001-of-0003.gguf", "m-0000a-of-00003.gguf"])
    func firstPartUnderAnotherNameCannotFindTheOthers(path: String) throws {
        let error = try failure { () throws(GGUFError) in
            try openParts([path: builders()[name(1)]!], path: path)
        }
        #expect(error.kind == .splitPart)
        #expect(error.subject == "file name")
        #expect(error.expected.contains("-00001-of-00003.gguf"))
    }

    @Test func partOfAnotherModelIsRejected() throws {
        for (key, wrong) in [("split.no", 2), ("split.count", 4)] {
            var parts = builders()
            var builder = GGUFBuilder()
            builder.add("split.no", .uint16(key == "split.no" ? UInt16(wrong) : 1))
            builder.add("split.count", .uint16(key == "split.count" ? UInt16(wrong) : 3))
            parts[name(2)] = builder
            let error = try failure { () throws(GGUFError) in try openParts(parts) }
            #expect(error.kind == .splitPart)
            #expect(error.file == name(2))
            #expect(error.subject == key)
            #expect(error.found == "\(wrong)")
        }
    }

    @Test func partWithoutSplitKeysIsRejected() throws {
        var parts = builders()
        parts[name(3)] = GGUFBuilder()
        let error = try failure { () throws(GGUFError) in try openParts(parts) }
        #expect(error.expected.contains("split.no"))
        #expect(error.file == name(3))
    }

    @Test func missingTensorsAreCounted() throws {
        var parts = builders()
        parts[name(2)]!.addTensor("extra", [1], type: 0, byteCount: 4)
        let error = try failure { () throws(GGUFError) in try openParts(parts) }
        #expect(error.subject == "split.tensors.count")
        #expect(error.found == "4")
    }

    @Test func tensorInTwoPartsIsRejected() throws {
        var parts = builders()
        var builder = GGUFBuilder()
        builder.add("split.no", .uint16(2))
        builder.add("split.count", .uint16(3))
        builder.addTensor("t0", [1], type: 0, byteCount: 4)
        parts[name(3)] = builder
        let error = try failure { () throws(GGUFError) in try openParts(parts) }
        #expect(error.kind == .duplicateName)
        #expect(error.file == name(3))
        #expect(error.found.contains(name(1)))
    }

    @Test func splitIntoOneIsAWholeFile() throws {
        var builder = GGUFBuilder()
        builder.add("split.no", .uint16(0))
        builder.add("split.count", .uint16(1))
        #expect(try open(builder).paths == ["m.gguf"])
    }

    @Test func hugePartCountIsRejected() throws {
        var builder = GGUFBuilder()
        builder.add("split.count", .uint32(.max))
        let error = try failure { () throws(GGUFError) in try open(builder) }
        #expect(error.kind == .malformed)
        #expect(error.expected == "at most 99999 parts")
    }
}
