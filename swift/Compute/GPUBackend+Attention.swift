import GPUSources

extension RowFormat {
    /// As the kernels see it.
    var gpu: gpu_row_format {
        gpu_row_format(kind: UInt32(kind.rawValue), dim: UInt32(dim), rope: UInt32(rope), bytes: UInt32(byteCount))
    }
}

extension GPUBackend {
    public func ropeTable(_ positions: IntTensor, _ frequencies: Vector) throws -> Tensor {
        let table = try arena.tensor(positions.count, frequencies.count, 2)
        dispatch(.rope_table_f32, ((positions.count * frequencies.count + 255) / 256, 1, 1),
                 [positions.ints.raw, try weights[frequencies], table.floats.raw],
                 gpu_rope_table(n: UInt32(positions.count), pairs: UInt32(frequencies.count)))
        return table
    }

    public func queries(_ q: Tensor, heads: Int, epsilon: Float, table: Tensor) throws -> Tensor {
        dispatch(.rope_queries_f32, (heads, q.rows, 1), [q.floats.raw, table.floats.raw],
                 gpu_queries(heads: UInt32(heads), dim: UInt32(q.width / heads), rope: UInt32(table.width),
                             epsilon: epsilon))
        return q
    }

    public func indexQueries(_ q: Tensor, heads: Int, rounded: Bool, table: Tensor) throws {
        dispatch(.kv_index_queries, (heads, q.rows, 1), [q.floats.raw, table.floats.raw],
                 gpu_index_queries(heads: UInt32(heads), dim: UInt32(q.width / heads), rope: UInt32(table.width),
                                   rounded: rounded ? 1 : 0))
    }

    /// Kernels hold a row in threadgroup memory and registers.
    private func check(_ format: RowFormat) throws {
        guard format.dim <= 512 else {
            throw ComputeError.device("heads of \(format.dim) values: the GPU computes with at most 512")
        }
    }

    public func keyRows(_ kv: Tensor, norm: Vector, epsilon: Float, table: Tensor,
                        _ format: RowFormat) throws -> UnsafeMutablePointer<UInt8> {
        try check(format)
        let rows = try arena.bytes(kv.rows * format.byteCount)
        dispatch(.kv_key_rows, (kv.rows, 1, 1), [kv.floats.raw, try weights[norm], table.floats.raw, rows.raw],
                 gpu_key_rows(format: format.gpu, epsilon: epsilon, unused: 0))
        return rows
    }

    public func compress(_ call: CompressorCall, into rows: inout RowStore) throws {
        let completed = call.completed, n = call.kv.rows
        let pages = try pageTable(rows)
        let arguments = gpu_compressor(
            format: rows.format.gpu, n: UInt32(n), ratio: UInt32(call.ratio), overlaps: call.overlaps ? 1 : 0,
            rows_per_page: UInt32(rows.rowsPerPage), rope: UInt32(2 * call.frequencies.count), epsilon: call.epsilon)
        let bias = try weights[call.bias], norm = try weights[call.norm], frequencies = try weights[call.frequencies]
        if n == 1 {
            dispatch(.compressor_step, (1, 1, 1),
                     [call.kv.floats.raw, call.gate.floats.raw, bias, norm, frequencies, call.positions.ints.raw,
                      call.state.contents.raw, pages], arguments)
        } else {
            if completed > 0 {
                dispatch(.compressor_rows, (completed, 1, 1),
                         [call.kv.floats.raw, call.gate.floats.raw, bias, norm, frequencies, call.positions.ints.raw,
                          call.state.contents.raw, pages], arguments)
            }
            dispatch(.compressor_state, ((rows.format.dim + 255) / 256, 1, 1),
                     [call.kv.floats.raw, call.gate.floats.raw, bias, call.positions.ints.raw, call.state.contents.raw], arguments)
        }
        rows.extend(by: completed)
    }

    /// Scores of this many bytes are kept at once.
    private static let scoreByteCount = 256 << 20
    private static let indexRows = 64

    public func selectRows(_ call: SelectionCall, of rows: RowStore) throws -> RowSelection {
        let n = call.q.rows
        // Room, not rows: the same for many tokens.
        let room = max(rows.capacity, Self.indexRows), top = min(call.top, room)
        let selected = try arena.intTensor(n, top), counts = try arena.intTensor(n)
        let pages = try pageTable(rows)
        let most = max(1, min(n, Self.scoreByteCount / (room * 4)))
        let mark = arena.mark()
        let scores = try arena.tensor(most, room)
        for first in stride(from: 0, to: n, by: most) {
            let part = first..<min(first + most, n)
            let arguments = gpu_indexer(
                format: rows.format.gpu, n: UInt32(part.count), heads: UInt32(call.heads), ratio: UInt32(call.ratio),
                rows_per_page: UInt32(rows.rowsPerPage), stride: UInt32(room), top: UInt32(top), scale: call.scale,
                unused: 0)
            let positions = call.positions[part].ints.raw
            // All rows are kept while there are not more than that: their scores do not matter.
            if room > top {
                dispatch(.indexer_score, ((room + Self.indexRows - 1) / Self.indexRows, part.count, 1),
                         [call.q[part].floats.raw, call.weights[part].floats.raw, pages, positions, scores.floats.raw], arguments)
            }
            dispatch(.indexer_top_k, (part.count, 1, 1),
                     [scores.floats.raw, positions, selected[part].ints.raw, counts[part].ints.raw], arguments)
        }
        arena.release(to: mark)
        return RowSelection(rows: selected, counts: counts)
    }

    private static let attentionHeads = 16
    /// Threadgroups that keep a large device busy.
    private static let attentionGroups = 384

    public func attend(_ call: AttentionCall) throws {
        let n = call.q.rows, groups = (call.heads + Self.attentionHeads - 1) / Self.attentionHeads
        let mostRows = call.window + (call.selection?.rows.width ?? call.compressed?.capacity ?? 0)
        let usesTiles = !isExact && n > Self.fewTokens && call.format.dim == 512
        let splits = usesTiles ? 1 : max(1, min(Self.attentionGroups / (n * groups), (mostRows + 15) / 16, 32))
        let mark = arena.mark()
        let parts = try arena.tensor(splits * n * call.heads, call.format.dim)
        let sums = try arena.tensor(splits * n * call.heads, 2)
        let pages = try call.compressed.map { try pageTable($0) }
        let arguments = gpu_attention(
            format: call.format.gpu, n: UInt32(n), heads: UInt32(call.heads), window: UInt32(call.window),
            ratio: call.compressed == nil ? 0 : UInt32(call.ratio),
            rows_per_page: UInt32(call.compressed?.rowsPerPage ?? 1), top: UInt32(call.selection?.rows.width ?? 0),
            splits: UInt32(splits), scale: call.scale)
        dispatch(usesTiles ? .attention_tiles : .attention_split,
                 usesTiles ? ((call.heads + 31) / 32, n, 1) : (splits, groups, n),
                 [call.q.floats.raw, call.ring.contents.raw, call.chunk.raw, pages, call.selection?.rows.ints.raw,
                  call.selection?.counts.ints.raw, call.positions.ints.raw, parts.floats.raw, sums.floats.raw], arguments)
        dispatch(.attention_merge, (call.heads, n, 1),
                 [parts.floats.raw, sums.floats.raw, try weights[call.sinks], call.table.floats.raw, call.chunk.raw,
                  call.positions.ints.raw, call.out.floats.raw, call.ring.contents.raw], arguments)
        arena.release(to: mark)
    }
}
