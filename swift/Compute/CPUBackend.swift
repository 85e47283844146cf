import CKernels

/// The kernels of CKernels on a pool of threads. See ckernels.h for what each computes, and in what
/// order: the bits of a token depend on nothing but its session's tokens.
public final class CPUBackend: Backend {
    public let name = "cpu"
    public let arena = Arena()
    public let memory: any Memory = CPUMemory.shared
    public let chunkTokens = 512
    let pool: OpaquePointer
    /// Told what every matrix is fed, when set.
    public var importance: ImportanceRecorder?

    /// - Parameter threads: The caller's included; nil for one per processor the process may use.
    /// - Throws: `ComputeError.outOfMemory` when threads cannot be started.
    public init(threads: Int?) throws {
        guard let pool = ck_pool_create(threads.map { Int32($0) } ?? ck_available_processors()) else {
            throw ComputeError.outOfMemory(byteCount: 0)
        }
        self.pool = pool
    }

    deinit { ck_pool_destroy(pool) }

    public var threads: Int { Int(ck_pool_threads(pool)) }
    public static var instructionSet: String { String(cString: ck_isa_name()) }

    /// Weights are read where the file is mapped.
    public func load(_ weights: [Matrix], _ tables: [IntTable]) {}

    public func upload(_ values: [Int32]) throws -> IntTensor {
        let out = try arena.intTensor(values.count)
        out.ints.update(from: values, count: values.count)
        return out
    }

    public func read(_ x: Tensor, _ receive: (UnsafeBufferPointer<Float>) -> Void) {
        receive(UnsafeBufferPointer(start: x.floats, count: x.count))
    }

    // MARK: Matrices and norms

    public func embed(_ table: Matrix, _ tokens: IntTensor) throws -> Tensor {
        let out = try arena.tensor(tokens.count, table.columns)
        var matrix = table.c
        matmul_embed(pool, &matrix, tokens.ints, Int64(tokens.count), out.floats)
        return out
    }

    public func project(_ x: Tensor, _ matrices: [Matrix]) throws -> [Tensor] {
        importance?.record(x, matrices)
        let outputs = try matrices.map { try arena.tensor(x.rows, $0.rows) }
        let jobs = zip(matrices, outputs).map { matrix, y in
            ck_matmul_job(w: matrix.c, x: x.floats, ldx: Int64(x.width), y: y.floats, ldy: Int64(y.width))
        }
        matmul(pool, jobs, Int32(jobs.count), Int64(x.rows))
        return outputs
    }

    public func projectGroups(_ x: Tensor, _ matrix: Matrix, groups: Int) throws -> Tensor {
        importance?.recordGroups(x, matrix, groups: groups)
        let out = try arena.tensor(x.rows, matrix.rows)
        let rows = matrix.rows / groups
        let jobs = (0..<groups).map { group in
            ck_matmul_job(w: matrix[group * rows..<(group + 1) * rows].c, x: x.floats + group * matrix.columns,
                          ldx: Int64(x.width), y: out.floats + group * rows, ldy: Int64(out.width))
        }
        matmul(pool, jobs, Int32(jobs.count), Int64(x.rows))
        return out
    }

    public func rmsNorm(_ x: Tensor, width: Int, weight: Vector, epsilon: Float) throws -> Tensor {
        try norm(x, width: width, weight: weight, epsilon: epsilon)
    }

    func norm(_ x: Tensor, width: Int, weight: Vector?, epsilon: Float) throws -> Tensor {
        let out = Tensor(shape: x.shape, floats: try arena.tensor(x.count).floats)
        rms_norm_f32(pool, x.floats, Int64(x.count / width), Int64(width), weight?.floats, epsilon, out.floats)
        return out
    }

    // MARK: Hyper-connections

    public func hcSpread(_ x: Tensor) throws -> Tensor {
        let streams = try arena.tensor(x.rows, 4, x.width)
        for t in 0..<x.rows {
            for i in 0..<4 {
                (streams.floats + (t * 4 + i) * x.width).update(from: x.floats + t * x.width, count: x.width)
            }
        }
        return streams
    }

    /// fn · flat and 1 / rms(flat) of the flattened streams.
    private func hcMix(_ streams: Tensor, _ weights: HyperConnectionWeights) throws -> (Tensor, Tensor) {
        let flat = streams.reshaped(streams.rows, streams.width)
        let inverse = try arena.tensor(streams.rows)
        rms_norm_scale_f32(pool, flat.floats, Int64(flat.rows), Int64(flat.width), weights.normEpsilon,
                           inverse.floats)
        return (try project(flat, [weights.fn])[0], inverse)
    }

    public func hcEnter(_ streams: Tensor, _ weights: HyperConnectionWeights, norm: Vector,
                        epsilon: Float) throws -> (x: Tensor, mix: HyperConnectionMix) {
        let mix = try hcSplit(streams, weights)
        let x = try hcCollapse(streams, mix.pre)
        return (try rmsNorm(x, width: x.width, weight: norm, epsilon: epsilon), mix)
    }

    private func hcSplit(_ streams: Tensor, _ weights: HyperConnectionWeights) throws -> HyperConnectionMix {
        let (mix, inverse) = try hcMix(streams, weights)
        let n = streams.rows
        let out = HyperConnectionMix(pre: try arena.tensor(n, 4), post: try arena.tensor(n, 4),
                                     comb: try arena.tensor(n, 4, 4))
        hc_split_f32(pool, mix.floats, inverse.floats, weights.scale.floats, weights.base.floats, Int64(n),
                     Int32(weights.sinkhornIterations), weights.epsilon, out.pre.floats, out.post.floats,
                     out.comb.floats)
        return out
    }

    public func hcHead(_ streams: Tensor, _ weights: HyperConnectionWeights, norm: Vector,
                       epsilon: Float) throws -> Tensor {
        let (mix, inverse) = try hcMix(streams, weights)
        let pre = try arena.tensor(streams.rows, 4)
        hc_head_f32(mix.floats, inverse.floats, weights.scale.floats, weights.base.floats, Int64(streams.rows),
                    weights.epsilon, pre.floats)
        let x = try hcCollapse(streams, pre)
        return try rmsNorm(x, width: x.width, weight: norm, epsilon: epsilon)
    }

    private func hcCollapse(_ streams: Tensor, _ pre: Tensor) throws -> Tensor {
        let x = try arena.tensor(streams.rows, streams.width / 4)
        hc_collapse_f32(pool, streams.floats, pre.floats, Int64(x.rows), Int64(x.width), x.floats)
        return x
    }

    public func hcLeave(_ streams: Tensor, _ y: Tensor, _ mix: HyperConnectionMix) {
        hc_expand_f32(pool, y.floats, mix.post.floats, mix.comb.floats, Int64(y.rows), Int64(y.width),
                      streams.floats)
    }
}
