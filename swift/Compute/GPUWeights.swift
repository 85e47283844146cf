import CKernels
import GPUSources

/// Where a matrix lies on the device, and how.
struct GPUWeight {
    let address: UnsafeRawPointer
    /// GPU_… of kernel_args.h.
    let type: UInt32
    /// Bytes to the scales of planes.
    let plane: UInt64
}

/// The model's weights on a device: in the file's mapping where memory is unified, else copied, Q8_0 and
/// the 2-bit types rearranged into aligned planes on the way.
final class GPUWeights {
    private let memory: GPUMemory
    private var matrices: [UnsafeRawPointer: GPUWeight] = [:]
    private var tables: [UnsafeRawPointer: UnsafeRawPointer] = [:]
    private var vectors: [ObjectIdentifier: Buffer] = [:]
    /// Vectors are looked up by identity: they must stay.
    private var kept: [Vector] = []

    /// Of the file at a time.
    private static let stagingByteCount = 64 << 20

    init(_ memory: GPUMemory) { self.memory = memory }

    /// What `load` makes of these, f32 included.
    static func types(of weights: [Matrix], isUnified: Bool) -> Set<UInt32> {
        var types = Set(weights.map { UInt32($0.type) })
        types.insert(UInt32(GPU_F32))
        if !isUnified {
            if types.remove(UInt32(GPU_Q8_0)) != nil { types.insert(UInt32(GPU_Q8_0_PLANES)) }
            if types.remove(UInt32(GPU_Q2_K)) != nil { types.insert(UInt32(GPU_Q2_K_PLANES)) }
            if types.remove(UInt32(GPU_IQ2_XXS)) != nil { types.insert(UInt32(GPU_IQ2_XXS_PLANES)) }
        }
        return types
    }

    /// - Throws: `ComputeError.device` with figures when they do not fit.
    func load(_ weights: [Matrix], _ tables: [IntTable]) throws {
        let device = memory.device
        if device.isUnified {
            for m in weights {
                try device.adopt(m.data, byteCount: m.byteCount)
                matrices[m.data] = GPUWeight(address: m.data, type: UInt32(m.type), plane: 0)
            }
            for table in tables {
                try device.adopt(table.data, byteCount: table.count * 4)
                self.tables[UnsafeRawPointer(table.data)] = UnsafeRawPointer(table.data)
            }
            return
        }
        let needed = weights.reduce(0) { $0 + $1.byteCount }, available = device.availableByteCount
        guard needed < available else {
            throw ComputeError.device(
                "the weights need \(needed >> 20) MiB and \(device.model) has \(available >> 20) MiB free")
        }
        let staging = try Buffer(byteCount: Self.stagingByteCount, in: memory)
        for m in weights { matrices[m.data] = try upload(m, staging) }
        for table in tables {
            let target = try device.allocate(byteCount: table.count * 4)
            try device.write(table.data, to: target, byteCount: table.count * 4)
            self.tables[UnsafeRawPointer(table.data)] = UnsafeRawPointer(target)
        }
    }

    /// As f32, whatever the file has.
    func loadDecoded(_ weights: [Matrix]) throws {
        for m in weights {
            let values = m.decoded()
            let target = try memory.device.allocate(byteCount: values.count * 4)
            try memory.device.write(values, to: target, byteCount: values.count * 4)
            matrices[m.data] = GPUWeight(address: target, type: UInt32(GPU_F32), plane: 0)
        }
    }

    private func upload(_ m: Matrix, _ staging: Buffer) throws -> GPUWeight {
        let device = memory.device
        let blockBytes = Int(ck_type_block_bytes(m.type)), blocks = m.byteCount / blockBytes
        let kernel: GPUKernel, type: UInt32, quantBytes: Int
        switch m.type {
        case Int32(CK_Q8_0.rawValue): (kernel, type, quantBytes) = (.quant_repack_q8_0, UInt32(GPU_Q8_0_PLANES), 32)
        case Int32(CK_Q2_K.rawValue): (kernel, type, quantBytes) = (.quant_repack_q2_k, UInt32(GPU_Q2_K_PLANES), 64)
        case Int32(CK_IQ2_XXS.rawValue): (kernel, type, quantBytes) = (.quant_repack_iq2_xxs, UInt32(GPU_IQ2_XXS_PLANES), 64)
        default:
            let target = try device.allocate(byteCount: m.byteCount + 16)
            try device.write(m.data, to: target, byteCount: m.byteCount)
            return GPUWeight(address: target, type: UInt32(m.type), plane: 0)
        }
        // Quants first, then scales.
        let target = try device.allocate(byteCount: m.byteCount), plane = UInt64(blocks * quantBytes)
        let most = Self.stagingByteCount / blockBytes
        for first in stride(from: 0, to: blocks, by: most) {
            let count = min(most, blocks - first)
            staging.write(m.data + first * blockBytes, byteCount: count * blockBytes)
            memory.dispatch(kernel, grid: ((count + 255) / 256, 1, 1), [staging.contents.raw, target.raw],
                            gpu_repack(blocks: UInt64(count), first_block: UInt64(first), plane: plane))
        }
        try memory.wait()
        return GPUWeight(address: target, type: type, plane: plane)
    }

    subscript(_ matrix: Matrix) -> GPUWeight {
        guard let found = matrices[matrix.data] else { preconditionFailure("\(matrix.name) was not loaded") }
        return found
    }

    subscript(_ table: IntTable) -> UnsafeRawPointer {
        guard let found = tables[table.data] else { preconditionFailure("\(table.name) was not loaded") }
        return found
    }

    /// Copied when first used.
    subscript(_ vector: Vector) -> UnsafeRawPointer {
        get throws {
            if let found = vectors[ObjectIdentifier(vector)] { return UnsafeRawPointer(found.contents) }
            let buffer = try Buffer(byteCount: vector.count * 4, in: memory)
            buffer.write(vector.floats, byteCount: vector.count * 4)
            vectors[ObjectIdentifier(vector)] = buffer
            kept.append(vector)
            return UnsafeRawPointer(buffer.contents)
        }
    }
}

extension Matrix {
    var byteCount: Int { count * rows * rowByteCount }
}
