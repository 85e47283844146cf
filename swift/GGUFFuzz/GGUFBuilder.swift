/// Writes GGUF bytes, right or wrong: what is set is what is written, checks are the reader's job.
package struct GGUFBuilder {
    /// A metadata value in the type it is to be stored with.
    package indirect enum Value {
        case uint8(UInt8), int8(Int8), uint16(UInt16), int16(Int16), uint32(UInt32), int32(Int32)
        case float32(Float), bool(Bool), string(String), uint64(UInt64), int64(Int64)
        case float64(Double)
        /// Element type id and elements, which should be of that type.
        case array(UInt32, [Value])
        /// Type id and payload, for what the cases above cannot say.
        case raw(UInt32, [UInt8])
    }

    private struct Tensor {
        let name: [UInt8]
        let shape: [UInt64]
        let type: UInt32
        /// Relative to the data; nil places the tensor behind the one before.
        let offset: UInt64?
        let byteCount: Int
    }

    /// Where a number stands that says how long, how many, which type or where: what a fuzzer
    /// should change first.
    package struct Field {
        package let offset: Int
        package let width: Int
    }

    package var magic: [UInt8] = Array("GGUF".utf8)
    package var version: UInt32 = 3
    /// What the header claims; nil for the truth.
    package var tensorCount: UInt64?
    package var metadataCount: UInt64?
    /// What tensors are really aligned to; `general.alignment` is written only by `add`.
    package var alignment = 32
    private var metadata: [(key: [UInt8], value: Value)] = []
    private var tensors: [Tensor] = []

    package init() {}

    package mutating func add(_ key: String, _ value: Value) {
        metadata.append((Array(key.utf8), value))
    }

    package mutating func add(keyBytes: [UInt8], _ value: Value) {
        metadata.append((keyBytes, value))
    }

    /// Adds a tensor with `byteCount` bytes of data (counted up from 1, wrapping at 256), `offset`
    /// into the data or, when that is nil, behind the tensor before.
    package mutating func addTensor(
        _ name: String, _ shape: [UInt64], type: UInt32, byteCount: Int, offset: UInt64? = nil
    ) {
        tensors.append(
            Tensor(
                name: Array(name.utf8), shape: shape, type: type, offset: offset,
                byteCount: byteCount))
    }

    package func bytes() -> [UInt8] { build().bytes }

    package func build() -> (bytes: [UInt8], fields: [Field], headerByteCount: Int) {
        var out = Output()
        out.bytes += magic
        out.field(version)
        out.field(tensorCount ?? UInt64(tensors.count))
        out.field(metadataCount ?? UInt64(metadata.count))
        for (key, value) in metadata {
            out.string(key)
            out.field(value.typeID)
            out.value(value)
        }
        var end = 0
        var placed: [(offset: Int, byteCount: Int)] = []
        for tensor in tensors {
            let offset = tensor.offset ?? UInt64(roundUp(end))
            out.string(tensor.name)
            out.field(UInt32(tensor.shape.count))
            tensor.shape.forEach { out.field($0) }
            out.field(tensor.type)
            out.field(offset)
            end = Int(clamping: offset) &+ tensor.byteCount
            placed.append((Int(clamping: offset), tensor.byteCount))
        }
        let headerByteCount = out.bytes.count
        let start = roundUp(headerByteCount)
        for (offset, byteCount) in placed where offset < 1 << 20 {
            let needed = start + offset + byteCount
            if out.bytes.count < needed {
                out.bytes += [UInt8](repeating: 0, count: needed - out.bytes.count)
            }
            for i in 0..<byteCount {
                out.bytes[start + offset + i] = UInt8(truncatingIfNeeded: i + 1)
            }
        }
        return (out.bytes, out.fields, headerByteCount)
    }

    private func roundUp(_ offset: Int) -> Int { (offset + alignment - 1) / alignment * alignment }
}

extension GGUFBuilder.Value {
    package var typeID: UInt32 {
        switch self {
        case .uint8: 0
        case .int8: 1
        case .uint16: 2
        case .int16: 3
        case .uint32: 4
        case .int32: 5
        case .float32: 6
        case .bool: 7
        case .string: 8
        case .array: 9
        case .uint64: 10
        case .int64: 11
        case .float64: 12
        case .raw(let type, _): type
        }
    }

    package static func strings(_ texts: [String]) -> Self { .array(8, texts.map { .string($0) }) }
}

private struct Output {
    var bytes: [UInt8] = []
    var fields: [GGUFBuilder.Field] = []

    mutating func integer(_ value: some FixedWidthInteger) {
        withUnsafeBytes(of: value.littleEndian) { bytes += $0 }
    }

    /// An integer that the structure depends on.
    mutating func field(_ value: some FixedWidthInteger) {
        fields.append(.init(offset: bytes.count, width: value.bitWidth / 8))
        integer(value)
    }

    mutating func string(_ text: [UInt8]) {
        field(UInt64(text.count))
        bytes += text
    }

    mutating func value(_ value: GGUFBuilder.Value) {
        switch value {
        case .uint8(let number): integer(number)
        case .int8(let number): integer(number)
        case .uint16(let number): integer(number)
        case .int16(let number): integer(number)
        case .uint32(let number): integer(number)
        case .int32(let number): integer(number)
        case .uint64(let number): integer(number)
        case .int64(let number): integer(number)
        case .float32(let number): integer(number.bitPattern)
        case .float64(let number): integer(number.bitPattern)
        case .bool(let flag): bytes.append(flag ? 1 : 0)
        case .string(let text): string(Array(text.utf8))
        case .raw(_, let payload): bytes += payload
        case .array(let type, let elements):
            field(type)
            field(UInt64(elements.count))
            elements.forEach { self.value($0) }
        }
    }
}
