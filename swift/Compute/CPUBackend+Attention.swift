import CKernels

extension CPUBackend {
    public func encodeRows(_ x: Tensor, _ format: RowFormat) throws -> UnsafeMutablePointer<UInt8> {
        let n = x.count / format.dim
        let rows = try arena.bytes(n * format.byteCount)
        kv_row_encode(pool, format.kind.rawValue, x.floats, Int64(n), Int64(format.dim), Int64(format.rope), rows)
        return rows
    }

    public func compress(kv: Tensor, gate: Tensor, bias: Vector, ratio: Int, overlap: Bool, position: Int,
                         state: Buffer, dim: Int) throws -> Tensor {
        let completed = (position + kv.rows) / ratio - position / ratio
        let rows = try arena.tensor(completed, dim)
        compressor_pool_f32(pool, kv.floats, gate.floats, bias.floats, Int64(kv.rows), Int64(dim), Int32(ratio),
                            overlap, Int64(position), state.contents.assumingMemoryBound(to: Float.self),
                            rows.floats)
        return rows
    }

    public func roundFP4(_ x: Tensor, dim: Int) {
        kv_round_fp4(pool, x.floats, Int64(x.count / dim), Int64(dim))
    }

    public func selectRows(q: Tensor, weights: Tensor, heads: Int, rows: RowStore, visible: [Int32], top: Int,
                           scale: Float) throws -> RowSelection {
        // Never wider than there are rows: a large top-k costs nothing in a short context.
        let width = max(1, min(top, Int(visible.max() ?? 0)))
        let selected = try arena.intTensor(q.rows, width)
        let counts = try arena.intTensor(q.rows)
        rows.withPagedRows { paged in
            indexer_select(pool, q.floats, weights.floats, Int64(q.rows), Int64(heads), Int64(rows.format.dim),
                           paged, visible, Int32(width), scale, selected.ints, counts.ints)
        }
        return RowSelection(rows: selected, counts: counts)
    }

    public func attend(_ call: AttentionCall) throws -> Tensor {
        let out = try arena.tensor(call.q.rows, call.q.width)
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
        c.chunk = call.chunk
        c.sinks = call.sinks.floats
        c.scale = call.scale
        c.out = out.floats
        if let compressed = call.compressed, let selection = call.selection {
            c.selected = selection.rows.map { UnsafePointer($0.ints) }
            c.top = Int32(selection.rows?.width ?? 0)
            c.counts = UnsafePointer(selection.counts.ints)
            compressed.withPagedRows { paged in
                c.rows = paged.pointee
                attention_f32(pool, &c)
            }
        } else {
            attention_f32(pool, &c)
        }
        return out
    }

    // MARK: Experts

    public func swiglu(gate: Tensor, up: Tensor, clamp: Float) {
        experts_swiglu(pool, gate.floats, up.floats, Int64(gate.rows), Int64(gate.width), clamp, gate.floats)
    }

    private func emptyRouting(_ n: Int, used: Int) throws -> Routing {
        Routing(ids: try arena.intTensor(n, used), weights: try arena.tensor(n, used))
    }

    public func routeTopK(_ logits: Tensor, bias: Vector?, used: Int, scale: Float) throws -> Routing {
        let routing = try emptyRouting(logits.rows, used: used)
        router_top_k(pool, logits.floats, bias?.floats, Int64(logits.rows), Int32(logits.width), Int32(used), scale,
                     routing.ids.ints, routing.weights.floats)
        return routing
    }

    public func routeHash(_ logits: Tensor, table: UnsafePointer<Int32>, tokens: [Int32], used: Int,
                          scale: Float) throws -> Routing {
        let routing = try emptyRouting(logits.rows, used: used)
        router_hash(pool, logits.floats, table, tokens, Int64(logits.rows), Int32(logits.width), Int32(used), scale,
                    routing.ids.ints, routing.weights.floats)
        return routing
    }

    public func experts(_ x: Tensor, gate: Matrix, up: Matrix, down: Matrix, routing: Routing,
                        clamp: Float) throws -> Tensor {
        let out = try arena.tensor(x.rows, down.rows)
        var call = ck_experts(gate: gate.c, up: up.c, down: down.c, n_experts: Int32(gate.count),
                              used: Int32(routing.ids.width), clamp: clamp)
        experts_forward(pool, &call, x.floats, routing.ids.ints, routing.weights.floats, Int64(x.rows), out.floats)
        return out
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
