import Compute

/// Multi-query attention over a sliding window and, in layers with compression, over compressed rows.
///
/// Low-rank queries, one shared row a token as key and value, a sink a head, and a grouped low-rank
/// output. Source: report §2.3; reference `Attention.forward`.
struct Attention {
    private let weights: AttentionWeights
    private let c: Configuration
    private let formats: KVFormats
    private let layer: Int
    private let backend: any Backend
    private let compressor: Compressor?
    private let indexer: Indexer?

    init(_ weights: AttentionWeights, _ c: Configuration, _ formats: KVFormats, layer: Int, backend: any Backend) {
        self.weights = weights
        self.c = c
        self.formats = formats
        self.layer = layer
        self.backend = backend
        let ratio = c.compressRatios[layer]
        compressor = weights.compressor.map { Compressor($0, ratio: ratio, c, backend: backend) }
        indexer = weights.indexer.map { Indexer($0, ratio: ratio, formats, c, backend: backend) }
    }

    /// x [tokens, D], normed → [tokens, D].
    func callAsFunction(_ x: Tensor, _ batch: Batch, _ caches: inout [KVCache], _ rotation: Rotation) throws -> Tensor {
        // Everything that reads x, in one pass over it.
        let fromX = try backend.project(
            x, [weights.qA, weights.kv] + (compressor?.inputs ?? []) + (indexer?.inputs ?? []))
        let queryLatent = try backend.rmsNorm(fromX[0], width: c.queryRank, weight: weights.qANorm,
                                              epsilon: c.normEpsilon)
        let fromLatent = try backend.project(queryLatent, [weights.qB] + (indexer.map { [$0.queries] } ?? []))

        let q = try backend.queries(fromLatent[0], heads: c.headCount, epsilon: c.normEpsilon, table: rotation.table)
        let rows = try backend.keyRows(fromX[1], norm: weights.kvANorm, epsilon: c.normEpsilon,
                                       table: rotation.table, formats.row)
        let indexQuery = try indexer?.prepare(fromLatent[1], rotation)

        let attended = try backend.arena.tensor(x.rows, c.headCount * c.headDim)
        for (index, span) in batch.spans.enumerated() {
            let range = batch.rows[index]
            try attend(
                span.position, batch.positions[range], q[range],
                rows + range.lowerBound * formats.row.byteCount, &caches[index].layers[layer],
                fromX.dropFirst(2).map { $0[range] }, indexQuery?[range],
                Rotation(table: rotation.table[range], frequencies: rotation.frequencies), into: attended[range])
        }
        let latent = try backend.projectGroups(attended, weights.outputA, groups: c.outputGroupCount)
        return try backend.project(latent, [weights.outputB])[0]
    }

    /// The part that belongs to one session: extends its compressed rows, attends, keeps its window.
    private func attend(_ position: Int, _ positions: IntTensor, _ q: Tensor, _ rows: UnsafeMutablePointer<UInt8>,
                        _ cache: inout LayerCache, _ compressing: [Tensor], _ indexQuery: Tensor?,
                        _ rotation: Rotation, into out: Tensor) throws {
        var selection: RowSelection?
        try compressor?.append(kv: compressing[0], gate: compressing[1], at: position, positions,
                               to: &cache.compressor!, rotation)
        if let indexer, let indexQuery {
            try indexer.compressor.append(kv: compressing[2], gate: compressing[3], at: position, positions,
                                          to: &cache.indexer!, rotation)
            selection = try indexer.select(indexQuery, weights: compressing[4], at: position, positions,
                                           cache.indexer!.rows)
        }
        try backend.attend(AttentionCall(
            q: q, heads: c.headCount, position: position, positions: positions, window: c.window,
            format: formats.row, ring: cache.ring, chunk: rows, compressed: cache.compressor?.rows,
            selection: selection, ratio: compressor?.ratio ?? 0, sinks: weights.sinks,
            scale: 1 / Float(c.headDim).squareRoot(), table: rotation.table, out: out))
    }
}
