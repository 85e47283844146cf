import GPUSources

extension GPUBackend {
    private func emptyRouting(_ n: Int, used: Int, experts: Int) throws -> Routing {
        guard used <= 32, experts <= 1024 else {
            throw ComputeError.device("\(used) of \(experts) experts a token: the GPU takes at most 32 of 1024")
        }
        return Routing(ids: try arena.intTensor(n, used), weights: try arena.tensor(n, used))
    }

    public func routeTopK(_ logits: Tensor, bias: Vector, used: Int, scale: Float) throws -> Routing {
        let routing = try emptyRouting(logits.rows, used: used, experts: logits.width)
        dispatch(.router_top_k, (logits.rows, 1, 1),
                 [logits.floats.raw, try weights[bias], routing.ids.ints.raw, routing.weights.floats.raw],
                 gpu_router(experts: UInt32(logits.width), used: UInt32(used), scale: scale, unused: 0))
        return routing
    }

    public func routeHash(_ logits: Tensor, table: IntTable, tokens: IntTensor, used: Int,
                          scale: Float) throws -> Routing {
        let routing = try emptyRouting(logits.rows, used: used, experts: logits.width)
        dispatch(.router_hash, (logits.rows, 1, 1),
                 [logits.floats.raw, weights[table], tokens.ints.raw, routing.ids.ints.raw, routing.weights.floats.raw],
                 gpu_router(experts: UInt32(logits.width), used: UInt32(used), scale: scale, unused: 0))
        return routing
    }

    public func experts(_ call: ExpertsCall) throws -> Tensor {
        let gate = weights[call.gate], down = weights[call.down], shared = weights[call.sharedDown]
        precondition(gate.type == weights[call.up].type && gate.plane == weights[call.up].plane,
                     "\(call.gate.name) and \(call.up.name) differ in type")
        let arguments = gpu_experts(
            type: gate.type, down_type: down.type, shared_type: shared.type, n: UInt32(call.x.rows),
            used: UInt32(call.routing.ids.width), experts: UInt32(call.gate.count), hidden: UInt32(call.gate.columns),
            inner: UInt32(call.gate.rows), shared_inner: UInt32(call.sharedGate.width), clamp: call.clamp,
            shared_clamp: call.sharedClamp, tile: UInt32(Self.tileTokens), plane: gate.plane,
            down_plane: down.plane, shared_plane: shared.plane)
        let many = [gate, down, shared].allSatisfy { usesTiles($0, tokens: call.x.rows) }
            && !(call.x.rows <= Self.fewExpertTokens && hasIntegerGate(call) && hasIntegerDown(call))
        return try many ? manyTokens(call, arguments) : fewTokens(call, arguments)
    }

    /// Up to so many tokens hardly two choose the same expert: reading its weights for each is quicker than tiles
    /// that are nearly empty.
    private static let fewExpertTokens = 128

    /// Kernels for weights as CUDA keeps them in the usual mix.
    private func hasIntegerGate(_ call: ExpertsCall) -> Bool {
        usesOwnMemory && weights[call.gate].type == UInt32(GPU_IQ2_XXS_PLANES)
            && call.gate.count * call.gate.rows * call.gate.rowByteCount < 1 << 32
    }

    private func hasIntegerDown(_ call: ExpertsCall) -> Bool {
        usesOwnMemory && weights[call.down].type == UInt32(GPU_Q2_K_PLANES)
            && weights[call.sharedDown].type == UInt32(GPU_Q8_0_PLANES)
    }

    private static let expertRows = 8
    /// Rows of a tile of the integer kernels: many where there are tiles enough for every multiprocessor.
    private static func int8Rows(_ rows: Int, times count: Int, least: Int) -> Int {
        [64, 32, 16, 8].first { $0 >= least && rows % $0 == 0 && (rows / $0 * count >= 1024 || $0 == least) } ?? least
    }

    private func fewTokens(_ call: ExpertsCall, _ arguments: gpu_experts) throws -> Tensor {
        let n = call.x.rows, assignments = call.routing.ids.count
        let y = try arena.tensor(n, call.down.rows)
        let h = try arena.tensor(assignments * call.gate.rows + n * call.sharedGate.width)
        let isGate = hasIntegerGate(call), isDown = hasIntegerDown(call)
        let gateRows = isGate
            ? Self.int8Rows(call.gate.rows, times: assignments, least: call.gate.rows % 32 == 0 ? 32 : 8) : Self.expertRows
        let downRows = isDown
            ? Self.int8Rows(call.down.rows, times: n, least: call.down.rows % 16 == 0 ? 16 : 8) : Self.expertRows
        var gateArguments = arguments, downArguments = arguments
        gateArguments.tile = UInt32(gateRows)
        downArguments.tile = UInt32(downRows)
        dispatch(isGate ? .experts_gate_up_int8 : .experts_gate_up, (call.gate.rows / gateRows, assignments + n, 1),
                 [weights[call.gate].address, weights[call.up].address, call.x.floats.raw, call.routing.ids.ints.raw,
                  call.routing.weights.floats.raw, call.sharedGate.floats.raw, call.sharedUp.floats.raw, h.floats.raw],
                 gateArguments)
        dispatch(isDown ? .experts_down_int8 : .experts_down, (call.down.rows / downRows, n, 1),
                 [weights[call.down].address, weights[call.sharedDown].address, h.floats.raw,
                  call.routing.ids.ints.raw, y.floats.raw], downArguments)
        return y
    }

    private func manyTokens(_ call: ExpertsCall, _ arguments: gpu_experts) throws -> Tensor {
        let n = call.x.rows, assignments = call.routing.ids.count, inner = call.gate.rows, hidden = call.down.rows
        let tileCount = assignments / Self.tileTokens + min(call.gate.count, assignments)
        dispatch(.shared_swiglu, ((call.sharedGate.width + 255) / 256, n, 1),
                 [call.sharedGate.floats.raw, call.sharedUp.floats.raw], arguments)
        let y = try project(call.sharedGate, [call.sharedDown])[0]

        let mark = arena.mark()
        let order = try arena.intTensor(assignments), place = try arena.intTensor(assignments)
        let tiles = try arena.intTensor(tileCount, 4)
        dispatch(.experts_sort, (1, 1, 1), [call.routing.ids.ints.raw, order.ints.raw, place.ints.raw, tiles.ints.raw], arguments)
        func multiply(_ matrix: Matrix, _ x: Tensor, _ y: Tensor, gather: Int) {
            let w = weights[matrix]
            dispatch(.matmul_experts, ((matrix.rows + Self.tileRows - 1) / Self.tileRows, tileCount, 1),
                     [w.address, x.floats.raw, y.floats.raw, tiles.ints.raw, order.ints.raw],
                     gpu_matmul(type: w.type, n: UInt32(assignments), rows: UInt32(matrix.rows),
                                columns: UInt32(matrix.columns), ldx: UInt32(matrix.columns), ldy: UInt32(matrix.rows),
                                group_rows: UInt32(matrix.rows), gather: UInt32(gather), plane: w.plane))
        }
        if usesOwnMemory, arguments.type == UInt32(GPU_IQ2_XXS_PLANES), arguments.down_type == UInt32(GPU_Q2_K_PLANES),
           hidden % Self.wideColumns == 0, inner % Self.wideColumns == 0 {
            try manyWide(call, order: order, tiles: tiles, place: place, arguments, y)
            arena.release(to: mark)
            return y
        }
        let gate = try arena.tensor(assignments, inner), up = try arena.tensor(assignments, inner)
        multiply(call.gate, call.x, gate, gather: call.routing.ids.width)
        multiply(call.up, call.x, up, gather: call.routing.ids.width)
        dispatch(.experts_swiglu, ((inner + 255) / 256, assignments, 1),
                 [gate.floats.raw, up.floats.raw, order.ints.raw, call.routing.weights.floats.raw], arguments)
        let parts = try arena.tensor(assignments, hidden)
        multiply(call.down, gate, parts, gather: 0)
        dispatch(.experts_sum, ((hidden + 255) / 256, n, 1), [parts.floats.raw, place.ints.raw, y.floats.raw], arguments)
        arena.release(to: mark)
        return y
    }

    /// Gate, up and SwiGLU as one kernel, whose packed result is down's input.
    private func manyWide(_ call: ExpertsCall, order: IntTensor, tiles: IntTensor, place: IntTensor, _ arguments: gpu_experts,
                          _ y: Tensor) throws {
        let assignments = call.routing.ids.count, inner = call.gate.rows, hidden = call.down.rows
        let packed = try pack(call.x, order: order, used: call.routing.ids.width)
        let h = try arena.tensor(packed.stride * inner / 2)
        func sizes(_ matrix: Matrix) -> gpu_wide_experts {
            gpu_wide_experts(rows: UInt32(matrix.rows), columns: UInt32(matrix.columns), stride: UInt32(packed.stride),
                             clamp: call.clamp, plane: weights[matrix].plane)
        }
        let rowTiles = (inner + Self.tileRows - 1) / Self.tileRows
        dispatch(.experts_gate_up_wide, (rowTiles, tiles.shape[0], 1),
                 [weights[call.gate].address, weights[call.up].address, packed.halfs, tiles.ints.raw, order.ints.raw,
                  call.routing.weights.floats.raw, h.floats.raw], sizes(call.gate))
        let parts = try arena.tensor(assignments, hidden)
        dispatch(.experts_down_wide, ((hidden + 2 * Self.tileRows - 1) / (2 * Self.tileRows), tiles.shape[0], 1),
                 [weights[call.down].address, h.floats.raw, parts.floats.raw, tiles.ints.raw], sizes(call.down))
        dispatch(.experts_sum, ((hidden + 255) / 256, call.x.rows, 1), [parts.floats.raw, place.ints.raw, y.floats.raw], arguments)
    }
}
