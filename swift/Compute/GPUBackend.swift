import GPUSources

/// The kernels of Compute/Metal on a GPU. One method is one or a few commands; nothing waits but `read`.
///
/// Kernels take positions from device memory and everything else from shapes, so that the commands of
/// one token are those of the next: a device may replay them as a whole.
public final class GPUBackend: Backend {
    public var name: String { device.name }
    public let arena: Arena
    public var memory: any Memory { gpu }
    public let chunkTokens = 2048
    /// Products in f32 only, as slow as that is; else many tokens go through the matrix units in half.
    public let isExact: Bool

    let device: any GPUDevice
    let gpu: GPUMemory
    let weights: GPUWeights
    let sessionTables: SessionTables
    private var logits: [Float] = []
    /// A way out that has not been taken yet, and where it took the streams; see `hcLeave`.
    private var leaving: (streams: Tensor, y: Tensor, mix: HyperConnectionMix)?
    private var moved: Tensor?

    public init(_ device: any GPUDevice, isExact: Bool = false) {
        self.device = device
        self.isExact = isExact
        gpu = GPUMemory(device)
        arena = Arena(memory: gpu, smallestSlab: 64 << 20)
        weights = GPUWeights(gpu)
        sessionTables = SessionTables(gpu)
    }

    public func load(_ weights: [Matrix], _ tables: [IntTable]) throws {
        try device.prepare(types: GPUWeights.types(of: weights, isUnified: device.isUnified))
        let mixers = weights.filter { $0.name.contains("hc_") }
        for m in weights where m.columns % 32 != 0 {
            throw ComputeError.device("\(m.name): \(m.columns) columns; the GPU needs a multiple of 32")
        }
        // Their kernel knows the usual formats; they are small, so others become f32.
        let unusual = mixers.filter { !Self.mixTypes.contains($0.type) }
        try self.weights.loadDecoded(unusual)
        try self.weights.load(weights.filter { m in !unusual.contains { $0.data == m.data } }, tables)
    }

    public var deviceMemory: DeviceMemory? {
        DeviceMemory(name: device.model, available: device.availableByteCount + gpu.spareByteCount,
                     buffers: arena.byteCount, chunkTokens: chunkTokens)
    }

    /// Inside `concurrently`: how many commands it has had.
    private var companions: Int?

    public func concurrently<R>(_ isIndependent: Bool, _ body: () throws -> R) rethrows -> R {
        companions = isIndependent ? 0 : nil
        defer { companions = nil }
        return try body()
    }

    func dispatch<T>(_ kernel: GPUKernel, _ grid: (Int, Int, Int), _ addresses: [UnsafeRawPointer?], _ arguments: T) {
        gpu.dispatch(kernel, grid: grid, addresses, arguments, overlaps: (companions ?? 0) > 0)
        companions? += 1
    }

    // MARK: Between the CPU and here

    public func upload(_ values: [Int32]) throws -> IntTensor {
        let out = try arena.intTensor(values.count)
        gpu.write(values, to: out.ints, byteCount: values.count * 4)
        return out
    }

    public func read(_ x: Tensor, _ receive: (UnsafeBufferPointer<Float>) -> Void) throws {
        if logits.count < x.count { logits = [Float](repeating: 0, count: x.count) }
        logits.withUnsafeMutableBytes { gpu.read(x.floats, into: $0.baseAddress!, byteCount: x.count * 4) }
        try gpu.check()
        logits.withUnsafeBufferPointer { receive(UnsafeBufferPointer(rebasing: $0[..<x.count])) }
    }

    // MARK: Matrices and norms

    public func embed(_ table: Matrix, _ tokens: IntTensor) throws -> Tensor {
        let out = try arena.tensor(tokens.count, table.columns), w = weights[table]
        dispatch(.matmul_embed, (tokens.count, 1, 1), [w.address, tokens.ints.raw, out.floats.raw],
                 gpu_embed(type: w.type, columns: UInt32(table.columns), plane: w.plane))
        return out
    }

    public func project(_ x: Tensor, _ matrices: [Matrix]) throws -> [Tensor] {
        let outputs = try matrices.map { try arena.tensor(x.rows, $0.rows) }
        try multiply(x, zip(matrices, outputs).map { Product(matrix: $0, y: $1, groups: 1) })
        return outputs
    }

    public func projectGroups(_ x: Tensor, _ matrix: Matrix, groups: Int) throws -> Tensor {
        let out = try arena.tensor(x.rows, matrix.rows)
        try multiply(x, [Product(matrix: matrix, y: out, groups: groups)])
        return out
    }

    private static let mixTypes: Set<Int32> = [Int32(GPU_F32), Int32(GPU_F16), Int32(GPU_BF16), Int32(GPU_Q8_0)]

    public func rmsNorm(_ x: Tensor, width: Int, weight: Vector, epsilon: Float) throws -> Tensor {
        let out = Tensor(shape: x.shape, floats: try arena.tensor(x.count).floats)
        dispatch(.rms_norm_f32, (x.count / width, 1, 1), [x.floats.raw, try weights[weight], out.floats.raw],
                 gpu_rms_norm(width: UInt32(width), epsilon: epsilon))
        return out
    }

    // MARK: Hyper-connections

    private func hc(_ n: Int, _ dim: Int) -> gpu_hc {
        var call = gpu_hc()
        call.n = UInt32(n)
        call.dim = UInt32(dim)
        return call
    }

    private func elements(_ count: Int) -> Int { (count + 255) / 256 }

    public func hcSpread(_ x: Tensor) throws -> Tensor {
        // A pass that failed may have left these.
        leaving = nil
        moved = nil
        let streams = try arena.tensor(x.rows, 4, x.width)
        dispatch(.hc_spread, (elements(x.width), x.rows, 1), [x.floats.raw, streams.floats.raw], hc(x.rows, x.width))
        return streams
    }

    /// Up to so many tokens each output has threadgroups of its own; above, a token's streams are read once.
    private static let fewMixes = 16
    /// Parts of an output, that `hc_enter` and `hc_head` add.
    private static let mixParts = 4
    /// Tokens of a threadgroup of `hc_enter` that makes their ways out.
    private static let waysOut = GPUKernel.hc_enter.threads / 32

    /// - Returns: The outputs, and where the streams are now.
    private func hcMix(_ streams: Tensor, _ w: HyperConnectionWeights,
                       _ epsilon: Float) throws -> (mix: Tensor, streams: Tensor, call: gpu_hc) {
        let fn = weights[w.fn], outputs = w.fn.rows, n = streams.rows
        var call = hc(n, streams.width / 4)
        call.outputs = UInt32(outputs)
        call.iterations = UInt32(w.sinkhornIterations)
        call.norm_epsilon = w.normEpsilon
        call.epsilon = w.epsilon
        call.input_epsilon = epsilon
        call.type = fn.type
        call.plane = fn.plane
        let mix = try arena.tensor(n, Self.mixParts, outputs + 4), few = (outputs + 1, n, Self.mixParts)
        if let last = leaving {
            precondition(last.streams.floats == streams.floats && moved == nil)
            leaving = nil
            let out = try arena.tensor(n, 4, streams.width / 4)
            dispatch(.hc_leave_mix, few,
                     [last.y.floats.raw, last.mix.post.floats.raw, last.mix.comb.floats.raw, streams.floats.raw,
                      fn.address, out.floats.raw, mix.floats.raw], call)
            moved = out
            return (mix, out, call)
        }
        let isMany = n > Self.fewMixes && outputs == 24 && call.dim % 128 == 0
        dispatch(isMany ? .hc_mix_many : .hc_mix, isMany ? (Self.mixParts, (n + 31) / 32, 1) : few,
                 [streams.floats.raw, fn.address, mix.floats.raw], call)
        return (mix, streams, call)
    }

    public func hcEnter(_ streams: Tensor, _ w: HyperConnectionWeights, norm: Vector,
                        epsilon: Float) throws -> (x: Tensor, mix: HyperConnectionMix) {
        let (mix, streams, call) = try hcMix(streams, w, epsilon), n = streams.rows
        let out = HyperConnectionMix(pre: mix, post: try arena.tensor(n, 4), comb: try arena.tensor(n, 4, 4))
        let x = try arena.tensor(n, streams.width / 4)
        dispatch(.hc_enter, ((n + Self.waysOut - 1) / Self.waysOut + n, 1, 1),
                 [mix.floats.raw, try weights[w.scale], try weights[w.base], streams.floats.raw, try weights[norm],
                  out.post.floats.raw, out.comb.floats.raw, x.floats.raw], call)
        return (x, out)
    }

    public func hcHead(_ streams: Tensor, _ w: HyperConnectionWeights, norm: Vector, epsilon: Float) throws -> Tensor {
        precondition(leaving == nil && moved == nil, "streams are whole behind an even number of sublayers")
        let (mix, _, call) = try hcMix(streams, w, epsilon), n = streams.rows
        let x = try arena.tensor(n, streams.width / 4)
        dispatch(.hc_head, (n, 1, 1),
                 [mix.floats.raw, try weights[w.scale], try weights[w.base], streams.floats.raw, try weights[norm], x.floats.raw],
                 call)
        return x
    }

    /// A block has two sublayers. The way out of the first waits for the way into the second, which does both in
    /// one launch; from then until the second's way out the streams are elsewhere. All of it lies between two
    /// releases of the arena.
    public func hcLeave(_ streams: Tensor, _ y: Tensor, _ mix: HyperConnectionMix) throws {
        if let current = moved {
            leave(from: current, y, mix, to: streams)
            moved = nil
        } else if y.rows <= Self.fewMixes {
            leaving = (streams, y, mix)
        } else {
            leave(from: streams, y, mix, to: streams)
        }
    }

    private func leave(from streams: Tensor, _ y: Tensor, _ mix: HyperConnectionMix, to out: Tensor) {
        dispatch(.hc_leave, (elements(y.width), y.rows, 1),
                 [y.floats.raw, mix.post.floats.raw, mix.comb.floats.raw, streams.floats.raw, out.floats.raw],
                 hc(y.rows, y.width))
    }
}

extension UnsafeMutablePointer {
    var raw: UnsafeRawPointer { UnsafeRawPointer(self) }
}

extension UnsafeMutableRawPointer {
    var raw: UnsafeRawPointer { UnsafeRawPointer(self) }
}
