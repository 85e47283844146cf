import CKernels

extension CPUBackend {
    public func ropeTable(_ positions: IntTensor, _ frequencies: Vector) throws -> Tensor {
        let table = try arena.tensor(positions.count, frequencies.count, 2)
        rope_table_f32(positions.ints, Int64(positions.count), frequencies.floats, Int64(2 * frequencies.count),
                       table.floats)
        return table
    }

    /// Rotates the last values of each of `heads` rows of a token, in place.
    private func rope(_ x: Tensor, heads: Int, table: Tensor, inverse: Bool = false) {
        rope_apply_f32(pool, x.floats, Int64(x.rows), Int64(heads), Int64(x.width / heads), Int64(table.width),
                       table.floats, inverse)
    }

    public func queries(_ q: Tensor, heads: Int, epsilon: Float, table: Tensor) throws -> Tensor {
        let normed = try norm(q, width: q.width / heads, weight: nil, epsilon: epsilon)
        rope(normed, heads: heads, table: table)
        return normed
    }

    public func indexQueries(_ q: Tensor, heads: Int, rounded: Bool, table: Tensor) {
        rope(q, heads: heads, table: table)
        let dim = q.width / heads
        if rounded { kv_round_fp4(pool, q.floats, Int64(q.count / dim), Int64(dim)) }
    }

    private func encode(_ x: Tensor, _ format: RowFormat) throws -> UnsafeMutablePointer<UInt8> {
        let rows = try arena.bytes(x.rows * format.byteCount)
        kv_row_encode(pool, format.kind.rawValue, x.floats, Int64(x.rows), Int64(format.dim), Int64(format.rope),
                      rows)
        return rows
    }

    public func keyRows(_ kv: Tensor, norm: Vector, epsilon: Float, table: Tensor,
                        _ format: RowFormat) throws -> UnsafeMutablePointer<UInt8> {
        let normed = try rmsNorm(kv, width: format.dim, weight: norm, epsilon: epsilon)
        rope(normed, heads: 1, table: table)
        return try encode(normed, format)
    }

    public func compress(_ call: CompressorCall, into rows: inout RowStore) throws {
        let dim = rows.format.dim, completed = call.completed
        let pooled = try arena.tensor(completed, dim)
        compressor_pool_f32(pool, call.kv.floats, call.gate.floats, call.bias.floats, Int64(call.kv.rows),
                            Int64(dim), Int32(call.ratio), call.overlaps, Int64(call.position),
                            call.state.contents.assumingMemoryBound(to: Float.self), pooled.floats)
        guard completed > 0 else { return }
        let normed = try rmsNorm(pooled, width: dim, weight: call.norm, epsilon: call.epsilon)
        // A row sits at the first position of its window.
        let first = call.position / call.ratio
        let positions = try upload((0..<completed).map { Int32((first + $0) * call.ratio) })
        rope(normed, heads: 1, table: try ropeTable(positions, call.frequencies))
        rows.append(try encode(normed, rows.format), count: completed)
    }

    /// How many compressed rows each of `n` tokens may see: row w when its window ends at or before it.
    private func visible(_ n: Int, position: Int, ratio: Int) -> [Int32] {
        (0..<n).map { Int32((position + $0 + 1) / ratio) }
    }

    public func selectRows(_ call: SelectionCall, of rows: RowStore) throws -> RowSelection {
        let n = call.q.rows, visible = visible(n, position: call.position, ratio: call.ratio)
        // Never wider than there are rows: a large top-k costs nothing in a short context.
        let width = max(1, min(call.top, Int(visible.max() ?? 0)))
        let selected = try arena.intTensor(n, width)
        let counts = try arena.intTensor(n)
        rows.withPagedRows { paged in
            indexer_select(pool, call.q.floats, call.weights.floats, Int64(n), Int64(call.heads),
                           Int64(rows.format.dim), paged, visible, Int32(width), call.scale, selected.ints,
                           counts.ints)
        }
        return RowSelection(rows: selected, counts: counts)
    }

    public func attend(_ call: AttentionCall) throws {
        var c = try kernelCall(call)
        withRows([call]) { rows in
            c.rows = rows[0]
            attention_f32(pool, &c)
        }
        finish(call)
    }

    /// Sessions that are at least as many as threads are divided among them, fewer ones each over all threads.
    public func attend(_ calls: [AttentionCall]) throws {
        guard calls.count >= threads, calls.allSatisfy({ $0.q.rows == 1 }) else {
            for call in calls { try attend(call) }
            return
        }
        var each = try calls.map(kernelCall)
        withRows(calls) { rows in
            for index in each.indices { each[index].rows = rows[index] }
            attention_sessions_f32(pool, each, Int64(each.count))
        }
        for call in calls { finish(call) }
    }

    /// All but the compressed rows.
    private func kernelCall(_ call: AttentionCall) throws -> ck_attention {
        var c = ck_attention()
        c.q = UnsafePointer(call.q.floats)
        c.n = Int64(call.q.rows)
        c.heads = Int64(call.heads)
        c.dim = Int64(call.format.dim)
        c.rope = Int64(call.format.rope)
        c.position = Int64(call.position)
        c.window = Int32(call.window)
        c.window_format = call.format.kind.rawValue
        c.window_row_bytes = call.format.byteCount
        c.ring = UnsafePointer(call.ring.contents.assumingMemoryBound(to: UInt8.self))
        c.chunk = UnsafePointer(call.chunk)
        c.sinks = call.sinks.floats
        c.scale = call.scale
        c.out = call.out.floats
        guard call.compressed != nil else { return c }
        let counts = try call.selection?.counts
            ?? upload(visible(call.q.rows, position: call.position, ratio: call.ratio))
        c.selected = call.selection.map { UnsafePointer($0.rows.ints) }
        c.top = Int32(call.selection?.rows.width ?? 0)
        c.counts = UnsafePointer(counts.ints)
        return c
    }

    /// The compressed rows of each call, for as long as `body` runs.
    private func withRows(_ calls: [AttentionCall], _ body: ([ck_paged_rows]) -> Void) {
        func collect(_ found: [ck_paged_rows]) {
            guard found.count < calls.count else { return body(found) }
            guard let store = calls[found.count].compressed else { return collect(found + [ck_paged_rows()]) }
            store.withPagedRows { collect(found + [$0.pointee]) }
        }
        collect([])
    }

    private func finish(_ call: AttentionCall) {
        rope(call.out, heads: call.heads, table: call.table, inverse: true)
        keepWindow(call)
    }

    /// The last `window` of the call's rows go into their slots of the ring.
    private func keepWindow(_ call: AttentionCall) {
        let size = call.format.byteCount, n = call.q.rows
        for i in max(0, n - call.window)..<n {
            let slot = (call.position + i) % call.window
            (call.ring.contents + slot * size).copyMemory(from: call.chunk + i * size, byteCount: size)
        }
    }

    // MARK: Experts

    private func emptyRouting(_ n: Int, used: Int) throws -> Routing {
        Routing(ids: try arena.intTensor(n, used), weights: try arena.tensor(n, used))
    }

    public func routeTopK(_ logits: Tensor, bias: Vector, used: Int, scale: Float) throws -> Routing {
        let routing = try emptyRouting(logits.rows, used: used)
        router_top_k(pool, logits.floats, bias.floats, Int64(logits.rows), Int32(logits.width), Int32(used), scale,
                     routing.ids.ints, routing.weights.floats)
        return routing
    }

    public func routeHash(_ logits: Tensor, table: IntTable, tokens: IntTensor, used: Int,
                          scale: Float) throws -> Routing {
        let routing = try emptyRouting(logits.rows, used: used)
        router_hash(pool, logits.floats, table.data, tokens.ints, Int64(logits.rows), Int32(logits.width), Int32(used), scale,
                    routing.ids.ints, routing.weights.floats)
        return routing
    }

    public func experts(_ call: ExpertsCall) throws -> Tensor {
        try importance?.record(call, self)
        let x = call.x, shared = call.sharedGate
        let y = try arena.tensor(x.rows, call.down.rows)
        var layer = ck_experts(gate: call.gate.c, up: call.up.c, down: call.down.c, n_experts: Int32(call.gate.count),
                               used: Int32(call.routing.ids.width), clamp: call.clamp)
        experts_forward(pool, &layer, x.floats, call.routing.ids.ints, call.routing.weights.floats, Int64(x.rows),
                        y.floats)
        experts_swiglu(pool, shared.floats, call.sharedUp.floats, Int64(shared.rows), Int64(shared.width),
                       call.sharedClamp, shared.floats)
        let added = try project(shared, [call.sharedDown])[0]
        for i in 0..<y.count { y.floats[i] += added.floats[i] }
        return y
    }
}

extension RowStore {
    func withPagedRows<R>(_ body: (UnsafePointer<ck_paged_rows>) -> R) -> R {
        pageAddresses.withUnsafeBufferPointer { pages in
            var paged = ck_paged_rows(pages: pages.baseAddress, rows_per_page: Int64(rowsPerPage),
                                      format: format.kind.rawValue, row_bytes: format.byteCount)
            return body(&paged)
        }
    }
}
