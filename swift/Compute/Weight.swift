import CKernels

/// A matrix of weights, or `count` of them behind one another (experts), as it lies in the file.
public struct Matrix {
    public let name: String
    /// ggml type id.
    public let type: Int32
    public let rows: Int
    public let columns: Int
    public let count: Int
    public let data: UnsafeRawPointer
    public let rowByteCount: Int

    public init(name: String, type: Int32, rows: Int, columns: Int, count: Int = 1, data: UnsafeRawPointer) {
        self.name = name
        self.type = type
        self.rows = rows
        self.columns = columns
        self.count = count
        self.data = data
        rowByteCount = columns / Int(ck_type_block_size(type)) * Int(ck_type_block_bytes(type))
    }

    /// Rows `range` as a matrix of their own.
    public subscript(range: Range<Int>) -> Matrix {
        Matrix(name: name, type: type, rows: range.count, columns: columns,
               data: data + range.lowerBound * rowByteCount)
    }

    var c: ck_matrix {
        ck_matrix(data: data, type: type, rows: Int64(rows), cols: Int64(columns), row_bytes: rowByteCount)
    }

    /// All weights as f32, row-major.
    public func decoded() -> [Float] {
        let n = rows * columns * count
        return [Float](unsafeUninitializedCapacity: n) { out, used in
            quant_decode_row(type, data, out.baseAddress!, Int64(n))
            used = n
        }
    }

    public static func canCompute(type: Int32) -> Bool { ck_type_supported(type) }
    public static func blockSize(type: Int32) -> Int { Int(ck_type_block_size(type)) }
}

/// A small tensor that every kernel wants as f32: norms, biases, scales.
public final class Vector {
    public let name: String
    public let count: Int
    private let storage: UnsafeMutablePointer<Float>
    public var floats: UnsafePointer<Float> { UnsafePointer(storage) }

    public init(name: String, _ values: [Float]) {
        self.name = name
        count = values.count
        storage = .allocate(capacity: max(count, 1))
        storage.initialize(from: values, count: count)
    }

    deinit { storage.deallocate() }
}

/// Integers of the file: which experts a token takes.
public struct IntTable {
    public let name: String
    public let data: UnsafePointer<Int32>
    public let count: Int

    public init(name: String, data: UnsafePointer<Int32>, count: Int) {
        self.name = name
        self.data = data
        self.count = count
    }
}
