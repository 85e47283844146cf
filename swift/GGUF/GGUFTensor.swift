/// One tensor of the file: its shape, and where its numbers lie.
public struct GGUFTensor: @unchecked Sendable {  // points into a mapping that never changes
    public let name: String
    /// Sizes in ggml's order: `shape[0]` numbers are adjacent in memory. One to four, none zero.
    public let shape: [Int]
    public let type: GGUFTensorType
    public let byteCount: Int
    /// The first byte, aligned to the file's `general.alignment`. Valid while the `GGUFFile` lives.
    public let pointer: UnsafeRawPointer
    /// Which part of a split file holds the data; index into `GGUFFile.paths`.
    public let fileIndex: Int
    /// Byte offset of the data in that part.
    public let fileOffset: Int

    public var elementCount: Int { shape.reduce(1, *) }
    /// Bytes of one row, `shape[0]` numbers.
    public var bytesPerRow: Int { shape[0] / type.elementsPerBlock * type.bytesPerBlock }
}

/// A tensor as the directory describes it, before its place in the file has been checked.
struct TensorRecord {
    let name: String
    let shape: [Int]
    let type: GGUFTensorType
    let byteCount: Int
    /// Relative to the start of the tensor data.
    let dataOffset: UInt64
    /// Where in the file the `dataOffset` field stands; for messages.
    let fieldOffset: Int

    /// Least size of a directory entry: name of one byte, one dimension, type, offset.
    static let minimumByteCount = 8 + 1 + 4 + 8 + 4 + 8

    init(_ reader: inout GGUFReader, index: Int) throws(GGUFError) {
        let name = try reader.name("tensor \(index), name")
        let dimensionsOffset = reader.offset
        let dimensionCount = try reader.integer(
            UInt32.self, "tensor \(quoted(name)), number of dimensions")
        guard (1...4).contains(dimensionCount) else {
            throw reader.error(
                .malformed, at: dimensionsOffset, "tensor \(quoted(name)), number of dimensions",
                expected: "1 to 4", found: "\(dimensionCount)")
        }
        var shape: [Int] = []
        var elementCount = 1
        for i in 0..<dimensionCount {
            let start = reader.offset
            let size = try reader.integer(UInt64.self, "tensor \(quoted(name)), dimension \(i)")
            guard size > 0, let exact = Int(exactly: size) else {
                throw reader.error(
                    .malformed, at: start, "tensor \(quoted(name)), dimension \(i)",
                    expected: "1 to 2^63 - 1", found: "\(size)")
            }
            let (product, overflow) = elementCount.multipliedReportingOverflow(by: exact)
            guard !overflow else {
                throw reader.error(
                    .malformed, at: start, "tensor \(quoted(name)), dimension \(i)",
                    expected: "a shape of fewer than 2^63 numbers",
                    found: "\(elementCount) times \(size)")
            }
            shape.append(exact)
            elementCount = product
        }
        let typeOffset = reader.offset
        let typeID = try reader.integer(UInt32.self, "tensor \(quoted(name)), type")
        guard let type = GGUFTensorType(rawValue: typeID) else {
            let removed = GGUFTensorType.removed[typeID].map { " (\($0), no longer in use)" } ?? ""
            throw reader.error(
                .unsupported, at: typeOffset, "tensor \(quoted(name)), type",
                expected: "a known tensor type", found: "\(typeID)\(removed)")
        }
        guard shape[0] % type.elementsPerBlock == 0 else {
            throw reader.error(
                .malformed, at: dimensionsOffset + 4, "tensor \(quoted(name)), dimension 0",
                expected: "a multiple of \(type.elementsPerBlock), the block of \(type.name)",
                found: "\(shape[0])")
        }
        let blockCount = elementCount / type.elementsPerBlock
        let (byteCount, overflow) = blockCount.multipliedReportingOverflow(by: type.bytesPerBlock)
        guard !overflow else {
            throw reader.error(
                .malformed, at: dimensionsOffset + 4, "tensor \(quoted(name)), shape",
                expected: "fewer than 2^63 bytes",
                found: "\(blockCount) blocks of \(type.bytesPerBlock)")
        }
        fieldOffset = reader.offset
        dataOffset = try reader.integer(UInt64.self, "tensor \(quoted(name)), offset")
        self.name = name
        self.shape = shape
        self.type = type
        self.byteCount = byteCount
    }
}
