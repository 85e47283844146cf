import GPUSources

extension RowFormat {
    /// As the kernels see it.
    var gpu: gpu_row_format {
        gpu_row_format(kind: UInt32(kind.rawValue), dim: UInt32(dim), rope: UInt32(rope), bytes: UInt32(byteCount))
    }
}

extension gpu_indexer {
    /// For `indexer_top_k` alone.
    init(format: gpu_row_format, n: UInt32, heads: UInt32, ratio: UInt32, rows_per_page: UInt32, stride: UInt32,
         top: UInt32, scale: Float, table_stride: UInt32) {
        self.init(format: format, n: n, heads: heads, ratio: ratio, rows_per_page: rows_per_page, stride: stride, top: top,
                  scale: scale, table_stride: table_stride, tokens: 0, unused: 0)
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

    /// Heads of a threadgroup that norms or rotates them.
    private static let queryHeads = 8

    public func queries(_ q: Tensor, heads: Int, epsilon: Float, table: Tensor) throws -> Tensor {
        dispatch(.rope_queries_f32, ((heads + Self.queryHeads - 1) / Self.queryHeads, q.rows, 1),
                 [q.floats.raw, table.floats.raw],
                 gpu_queries(heads: UInt32(heads), dim: UInt32(q.width / heads), rope: UInt32(table.width),
                             epsilon: epsilon))
        return q
    }

    public func indexQueries(_ q: Tensor, heads: Int, rounded: Bool, table: Tensor) throws {
        dispatch(.kv_index_queries, ((heads + Self.queryHeads - 1) / Self.queryHeads, q.rows, 1),
                 [q.floats.raw, table.floats.raw],
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

    // MARK: Of several sessions at once

    public func compress(_ call: CompressorCall, into rows: inout RowStore) throws {
        try compress([call], into: [rows])
        rows.extend(by: call.completed)
    }

    public func compress(_ calls: [CompressorCall], into stores: [RowStore]) throws {
        let call = calls[0], format = stores[0].format, completed = call.completed, n = call.kv.rows
        precondition(calls.enumerated().allSatisfy { $1.kv.floats == call.kv.floats + $0 * call.kv.width })
        let sessions = try sessionTable(zip(calls, stores).map { ($0.state.contents, $1) })
        let arguments = gpu_compressor(
            format: format.gpu, n: UInt32(n), ratio: UInt32(call.ratio), overlaps: call.overlaps ? 1 : 0,
            rows_per_page: UInt32(stores[0].rowsPerPage), rope: UInt32(2 * call.frequencies.count),
            epsilon: call.epsilon, table_stride: sessions.stride, unused: 0)
        let bias = try weights[call.bias]
        let inputs = [call.kv.floats.raw, call.gate.floats.raw, bias]
        let finish = [try weights[call.norm], try weights[call.frequencies], call.positions.ints.raw, sessions.address]
        if n == 1 {
            dispatch(.compressor_step, (calls.count, 1, 1), inputs + finish, arguments)
            return
        }
        if completed > 0 { dispatch(.compressor_rows, (completed, 1, 1), inputs + finish, arguments) }
        dispatch(.compressor_state, ((format.dim / 2 + 255) / 256, 1, 1),
                 inputs + [call.positions.ints.raw, sessions.address], arguments)
    }

    /// Scores of this many bytes are kept at once.
    private static let scoreByteCount = 256 << 20
    private static let indexRows = 32
    private static let indexManyRows = 256
    private static let indexPlainRows = 64
    /// Threadgroups that keep a large device busy while others begin and end.
    private static let indexGroups = 1024
    private static let indexDim = 128

    public func selectRows(_ call: SelectionCall, of rows: RowStore) throws -> RowSelection {
        try selectRows([call], of: [rows])[0]
    }

    /// How scores are computed: threadgroups, and the tokens that each takes one after another (0: a single one).
    ///
    /// Rows in FP4 are multiplied on the matrix units, where they are exact: also where only f32 is allowed.
    private func indexGrid(_ format: RowFormat, room: Int, tokens n: Int, isApart: Bool) -> (tokens: Int, (Int, Int, Int)) {
        func blocks(_ rows: Int) -> Int { (room + rows - 1) / rows }
        guard format.kind == .fp4, format.dim == Self.indexDim else { return (0, (blocks(Self.indexPlainRows), n, 1)) }
        guard !isApart, n > Self.fewTokens else { return (0, (blocks(Self.indexRows), n, 1)) }
        let columns = blocks(Self.indexManyRows), tokens = max(8, min(64, n * columns / Self.indexGroups))
        return (tokens, (columns, (n + tokens - 1) / tokens, 1))
    }

    public func selectRows(_ calls: [SelectionCall], of stores: [RowStore]) throws -> [RowSelection] {
        let call = calls[0], format = stores[0].format
        let isApart = calls.count > 1, n = isApart ? calls.count : call.q.rows
        precondition(calls.enumerated().allSatisfy { $1.q.floats == call.q.floats + $0 * call.q.width })
        let sessions = try sessionTable(stores.map { (nil, $0) })
        let room = max(sessions.room, 1), top = min(call.top, room)
        let selected = try arena.intTensor(n, top), counts = try arena.intTensor(n)
        let most = max(1, min(n, Self.scoreByteCount / (room * 4)))
        let mark = arena.mark()
        let scores = try arena.tensor(most, room)
        for first in stride(from: 0, to: n, by: most) {
            let part = first..<min(first + most, n)
            let (tokens, grid) = indexGrid(format, room: room, tokens: part.count, isApart: isApart)
            let arguments = gpu_indexer(
                format: format.gpu, n: UInt32(part.count), heads: UInt32(call.heads), ratio: UInt32(call.ratio),
                rows_per_page: UInt32(stores[0].rowsPerPage), stride: UInt32(room), top: UInt32(top), scale: call.scale,
                table_stride: sessions.stride, tokens: UInt32(tokens), unused: 0)
            let positions = call.positions.ints + first
            // All rows are kept while there are not more than that: their scores do not matter.
            if room > top {
                dispatch(.indexer_score, grid,
                         [(call.q.floats + first * call.q.width).raw, (call.weights.floats + first * call.weights.width).raw,
                          sessions.address + Int(sessions.stride) * 8 * first, positions.raw, scores.floats.raw], arguments)
            }
            dispatch(.indexer_top_k, (part.count, 1, 1),
                     [scores.floats.raw, positions.raw, selected[part].ints.raw, counts[part].ints.raw], arguments)
        }
        arena.release(to: mark)
        guard isApart else { return [RowSelection(rows: selected, counts: counts)] }
        return (0..<n).map { RowSelection(rows: selected[$0..<$0 + 1], counts: counts[$0..<$0 + 1]) }
    }

    private static let attentionHeads = 16
    private static let tilesHeads = 64
    /// Up to so many tokens the kernel of single tokens, as good as f32, is no slower than the one in half.
    private static let preciseTokens = 64
    private static let mergeValues = 128
    private static let mostSplits = 32
    /// Threadgroups of a launch that keep a large device busy, two on each multiprocessor.
    private static let attentionGroups = 264

    public func attend(_ call: AttentionCall) throws { try attend([call]) }

    public func attend(_ calls: [AttentionCall]) throws {
        let call = calls[0], isApart = calls.count > 1, n = isApart ? calls.count : call.q.rows
        precondition(calls.enumerated().allSatisfy {
            $1.q.floats == call.q.floats + $0 * call.q.width && $1.out.floats == call.out.floats + $0 * call.out.width
                && $1.chunk == call.chunk + $0 * call.format.byteCount
        })
        let sessions = try sessionTable(calls.map { ($0.ring.contents, $0.compressed) })
        var arguments = gpu_attention(
            format: call.format.gpu, n: UInt32(n), heads: UInt32(call.heads), window: UInt32(call.window),
            ratio: call.compressed == nil ? 0 : UInt32(call.ratio),
            rows_per_page: UInt32(call.compressed?.rowsPerPage ?? 1), top: UInt32(call.selection?.rows.width ?? 0),
            splits: 0, scale: call.scale, table_stride: sessions.stride, first: 0)
        let rows = [call.q.floats.raw, call.chunk.raw, sessions.address, call.selection?.rows.ints.raw,
                    call.selection?.counts.ints.raw, call.positions.ints.raw]
        let sinks = try weights[call.sinks]
        func merge(_ parts: Tensor?, _ sums: Tensor?, _ grid: (Int, Int, Int)) {
            dispatch(.attention_merge, grid,
                     [parts?.floats.raw, sums?.floats.raw, sinks, call.table.floats.raw, call.chunk.raw,
                      call.positions.ints.raw, call.out.floats.raw, sessions.address], arguments)
        }
        if !isExact && !isApart && n > Self.preciseTokens && call.format.dim == 512 {
            dispatch(.attention_tiles, ((call.heads + Self.tilesHeads - 1) / Self.tilesHeads, n, 1),
                     rows + [sinks, call.table.floats.raw, call.out.floats.raw], arguments)
            // The ring is still read until the last token is done.
            let kept = min(n, call.window)
            arguments.first = UInt32(n - kept)
            merge(nil, nil, (1, kept, 1))
            return
        }
        let groups = (call.heads + Self.attentionHeads - 1) / Self.attentionHeads
        let mostRows = call.window + (call.selection?.rows.width ?? sessions.room)
        // A share of one or two tiles of sixteen rows while there is room for so many threadgroups.
        let shares = (mostRows + 15) / 16, few = max(1, Self.attentionGroups / (n * groups))
        let splits = min(shares > few / 4 ? (shares + 1) / 2 : shares, few, Self.mostSplits)
        let mark = arena.mark()
        let parts = try arena.tensor(splits * n * call.heads, call.format.dim)
        let sums = try arena.tensor(splits * n * call.heads, 2)
        arguments.splits = UInt32(splits)
        dispatch(.attention_split, (splits, groups, n), rows + [parts.floats.raw, sums.floats.raw], arguments)
        merge(parts, sums, (call.heads, n, (call.format.dim + Self.mergeValues - 1) / Self.mergeValues))
        arena.release(to: mark)
    }
}
