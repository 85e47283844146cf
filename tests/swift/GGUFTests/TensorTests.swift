import GGUF
import GGUFFuzz
import Testing

@Suite struct TensorTests {
    private func openFailure(_ change: (inout GGUFBuilder) -> Void) throws -> GGUFError {
        var builder = GGUFBuilder()
        change(&builder)
        return try failure { () throws(GGUFError) in try open(builder) }
    }

    @Test func tensorPointsAtItsOwnBytes() throws {
        var builder = GGUFBuilder()
        builder.add("general.name", .string("moves the data off its natural place"))
        builder.addTensor("a", [3], type: 0, byteCount: 12)
        builder.addTensor("b", [64, 2, 3], type: 8, byteCount: 408)
        let bytes = builder.bytes()
        let file = try open(bytes)
        defer { withExtendedLifetime(file) {} }
        let b = try #require(file.tensor("b"))
        #expect(b.shape == [64, 2, 3] && b.type == .q8_0 && b.byteCount == 408)
        #expect(b.elementCount == 384 && b.bytesPerRow == 68)
        #expect(b.fileOffset % 32 == 0 && b.fileIndex == 0)
        let data = Array(UnsafeRawBufferPointer(start: b.pointer, count: b.byteCount))
        #expect(data == Array(bytes[b.fileOffset..<b.fileOffset + 408]))
        #expect(data.first == 1 && data.last == UInt8(truncatingIfNeeded: 408))
        #expect(file.tensor("c") == nil)
    }

    @Test func everyTensorTypeHasARowOfWholeBlocks() throws {
        for type in GGUFTensorType.allCases {
            var builder = GGUFBuilder()
            builder.addTensor(
                "t", [UInt64(type.elementsPerBlock * 3), 2], type: type.rawValue,
                byteCount: type.bytesPerBlock * 6)
            let tensor = try #require(try open(builder).tensor("t"))
            #expect(tensor.byteCount == type.bytesPerBlock * 6, "\(type)")
            #expect(tensor.bytesPerRow == type.bytesPerBlock * 3, "\(type)")
        }
    }

    @Test func typesOfPublishedFilesHaveTheirKnownSizesAndNames() {
        let sizes: [(GGUFTensorType, Int, Int, String)] = [
            (.f32, 1, 4, "F32"), (.f16, 1, 2, "F16"), (.bf16, 1, 2, "BF16"),
            (.q8_0, 32, 34, "Q8_0"), (.q4_0, 32, 18, "Q4_0"), (.q2_k, 256, 84, "Q2_K"),
            (.q3_k, 256, 110, "Q3_K"), (.q4_k, 256, 144, "Q4_K"), (.q5_k, 256, 176, "Q5_K"),
            (.q6_k, 256, 210, "Q6_K"), (.iq2_xxs, 256, 66, "IQ2_XXS"), (.mxfp4, 32, 17, "MXFP4"),
            (.i32, 1, 4, "I32"),
        ]
        for (type, elements, bytes, name) in sizes {
            #expect(type.elementsPerBlock == elements && type.bytesPerBlock == bytes, "\(name)")
            #expect(type.name == name)
        }
    }

    @Test(arguments: [UInt32(5), 31, 36, 42, 1000, .max])
    func unknownTypeIsNamedWithItsTensor(type: UInt32) throws {
        let error = try openFailure { $0.addTensor("odd", [32], type: type, byteCount: 4) }
        #expect(error.kind == .unsupported)
        #expect(error.subject == "tensor 'odd', type")
        #expect(error.found.hasPrefix("\(type)"))
        #expect(error.found.contains("no longer in use") == (type < 40))
    }

    @Test(arguments: [0, 5, UInt32.max])
    func dimensionCountOutsideOneToFourIsMalformed(count: UInt32) throws {
        var builder = GGUFBuilder()
        builder.addTensor("t", [1], type: 0, byteCount: 4)
        var bytes = builder.bytes()
        let place = 24 + 8 + 1
        withUnsafeBytes(of: count.littleEndian) { bytes.replaceSubrange(place..<place + 4, with: $0) }
        let error = try failure { () throws(GGUFError) in try open(bytes) }
        #expect(error.kind == .malformed)
        #expect(error.offset == place)
        #expect(error.expected == "1 to 4")
    }

    @Test(arguments: [[0], [4, 0], [1, 1, 1, 0], [1 << 63], [.max]] as [[UInt64]])
    func dimensionThatIsZeroOrAboveInt64IsMalformed(shape: [UInt64]) throws {
        let error = try openFailure { $0.addTensor("t", shape, type: 0, byteCount: 4) }
        #expect(error.kind == .malformed)
        #expect(error.subject == "tensor 't', dimension \(shape.count - 1)")
        #expect(error.expected == "1 to 2^63 - 1")
    }

    @Test(arguments: [
        [1 << 32, 1 << 31], [1 << 62, 2], [1 << 16, 1 << 16, 1 << 16, 1 << 15],
        [UInt64(Int.max), 3],
    ] as [[UInt64]])
    func shapeWhoseProductOverflowsIsMalformed(shape: [UInt64]) throws {
        let error = try openFailure { $0.addTensor("t", shape, type: 24, byteCount: 4) }
        #expect(error.kind == .malformed)
        #expect(error.expected.contains("fewer than 2^63"))
    }

    @Test func byteCountThatOverflowsIsMalformed() throws {
        let error = try openFailure { $0.addTensor("t", [1 << 62], type: 0, byteCount: 4) }
        #expect(error.kind == .malformed)
        #expect(error.expected == "fewer than 2^63 bytes")
    }

    @Test(arguments: [
        (8, 31, 32), (8, 33, 32), (10, 255, 256), (16, 128, 256), (39, 16, 32), (40, 32, 64),
    ] as [(UInt32, UInt64, Int)])
    func rowThatIsNotWholeBlocksIsMalformed(type: UInt32, row: UInt64, block: Int) throws {
        // Two rows, so that the product may well be whole blocks where one row is not.
        let error = try openFailure { $0.addTensor("t", [row, 2], type: type, byteCount: 4) }
        #expect(error.kind == .malformed)
        #expect(error.expected.hasPrefix("a multiple of \(block)"))
        #expect(error.found == "\(row)")
    }

    @Test func repeatedTensorNameIsRejected() throws {
        let error = try openFailure {
            $0.addTensor("t", [1], type: 0, byteCount: 4)
            $0.addTensor("t", [1], type: 0, byteCount: 4)
        }
        #expect(error.kind == .duplicateName)
        #expect(error.subject == "tensor 1, name")
    }

    @Test(arguments: [1, 4, 16, 31, 33] as [UInt64])
    func misalignedOffsetIsRejected(offset: UInt64) throws {
        let error = try openFailure { $0.addTensor("t", [1], type: 0, byteCount: 64, offset: offset) }
        #expect(error.kind == .tensorLayout)
        #expect(error.expected == "a multiple of 32")
        #expect(error.found == "\(offset)")
    }

    @Test(arguments: [64, 1 << 40, 1 << 63, UInt64.max - 31] as [UInt64])
    func dataBeyondTheFileIsRejected(offset: UInt64) throws {
        let error = try openFailure {
            $0.addTensor("inside", [16], type: 0, byteCount: 64)
            $0.addTensor("outside", [1], type: 0, byteCount: 0, offset: offset)
        }
        #expect(error.kind == .tensorLayout)
        #expect(error.subject == "tensor 'outside', offset")
        #expect(error.expected.contains("is the download complete?"))
    }

    @Test func dataMayEndExactlyWithTheFile() throws {
        var builder = GGUFBuilder()
        builder.addTensor("t", [16], type: 0, byteCount: 64)
        var bytes = builder.bytes()
        #expect(try #require(open(bytes).tensor("t")).fileOffset + 64 == bytes.count)
        bytes.removeLast()
        #expect(try failure { () throws(GGUFError) in try open(bytes) }.kind == .tensorLayout)
    }

    @Test(arguments: [0, 32] as [UInt64])
    func overlappingTensorsAreRejectedInAnyOrder(offset: UInt64) throws {
        for reversed in [false, true] {
            let error = try openFailure {
                if !reversed { $0.addTensor("long", [16], type: 0, byteCount: 64, offset: 0) }
                $0.addTensor("short", [1], type: 0, byteCount: 4, offset: offset)
                if reversed { $0.addTensor("long", [16], type: 0, byteCount: 64, offset: 0) }
            }
            #expect(error.kind == .tensorLayout)
            #expect(error.description.contains("'long'") && error.description.contains("'short'"))
        }
    }

    @Test func gapsAndAnyOrderOfDataAreFine() throws {
        var builder = GGUFBuilder()
        builder.addTensor("second", [8], type: 0, byteCount: 32, offset: 32)
        builder.addTensor("fourth", [1], type: 0, byteCount: 4, offset: 256)
        builder.addTensor("first", [8], type: 0, byteCount: 32, offset: 0)
        #expect(try open(builder).tensors.map(\.name) == ["second", "fourth", "first"])
    }

    @Test(arguments: [8, 16, 64, 4096])
    func alignmentFromTheMetadataPlacesTheData(alignment: Int) throws {
        var builder = GGUFBuilder()
        builder.alignment = alignment
        builder.add("general.alignment", .uint32(UInt32(alignment)))
        builder.addTensor("a", [1], type: 0, byteCount: 4)
        builder.addTensor("b", [1], type: 0, byteCount: 4)
        let file = try open(builder)
        defer { withExtendedLifetime(file) {} }
        #expect(file.alignment == alignment)
        #expect(file.tensors.allSatisfy { $0.fileOffset % alignment == 0 })
        #expect(file.tensors[1].pointer.load(as: UInt8.self) == 1)
    }

    @Test(arguments: [0, 1, 4, 7, 24, 33, 1 << 31] as [UInt32])
    func alignmentThatIsNoPowerOfTwoFrom8IsMalformed(alignment: UInt32) throws {
        let error = try openFailure { $0.add("general.alignment", .uint32(alignment)) }
        #expect(error.kind == .malformed)
        #expect(error.subject == "metadata 'general.alignment'")
        #expect(error.found == "\(alignment)")
    }

    @Test func alignmentOfAnotherTypeIsWrongType() throws {
        let error = try openFailure { $0.add("general.alignment", .string("32")) }
        #expect(error.kind == .wrongType)
    }
}
