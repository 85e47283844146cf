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
        // A single token's compressors are one step each; many tokens take several.
        let isDecoding = batch.spans.allSatisfy { $0.tokens.count == 1 }
        let (queryLatent, rows) = try backend.concurrently(isDecoding) {
            let queryLatent = try backend.rmsNorm(fromX[0], width: c.queryRank, weight: weights.qANorm,
                                                  epsilon: c.normEpsilon)
            let rows = try backend.keyRows(fromX[1], norm: weights.kvANorm, epsilon: c.normEpsilon,
                                           table: rotation.table, formats.row)
            for (index, span) in batch.spans.enumerated() {
                try compress(span.position, batch.positions[batch.rows[index]],
                             fromX.dropFirst(2).map { $0[batch.rows[index]] }, &caches[index].layers[layer], rotation)
            }
            return (queryLatent, rows)
        }
        let fromLatent = try backend.project(queryLatent, [weights.qB] + (indexer.map { [$0.queries] } ?? []))
        let (q, indexQuery) = try backend.concurrently(true) {
            (try backend.queries(fromLatent[0], heads: c.headCount, epsilon: c.normEpsilon, table: rotation.table),
             try indexer?.prepare(fromLatent[1], rotation))
        }
        let attended = try backend.arena.tensor(x.rows, c.headCount * c.headDim)
        for (index, span) in batch.spans.enumerated() {
            let range = batch.rows[index]
            try attend(span.position, batch.positions[range], q[range],
                       rows + range.lowerBound * formats.row.byteCount, caches[index].layers[layer],
                       indexQuery?[range], indexQuery.map { _ in fromX[6][range] }, rotation.table[range],
                       into: attended[range])
        }
        let latent = try backend.projectGroups(attended, weights.outputA, groups: c.outputGroupCount)
        return try backend.project(latent, [weights.outputB])[0]
    }

    /// Extends the compressed rows of one session: kv and gate of the compressor, then of the indexer's.
    private func compress(_ position: Int, _ positions: IntTensor, _ inputs: [Tensor], _ cache: inout LayerCache,
                          _ rotation: Rotation) throws {
        try compressor?.append(kv: inputs[0], gate: inputs[1], at: position, positions, to: &cache.compressor!,
                               rotation)
        try indexer?.compressor.append(kv: inputs[2], gate: inputs[3], at: position, positions, to: &cache.indexer!,
                                       rotation)
    }

    /// One session's tokens attend to its window and compressed rows; their own rows go into the ring.
    private func attend(_ position: Int, _ positions: IntTensor, _ q: Tensor, _ rows: UnsafeMutablePointer<UInt8>,
                        _ cache: LayerCache, _ indexQuery: Tensor?, _ indexWeights: Tensor?, _ table: Tensor,
                        into out: Tensor) throws {
        var selection: RowSelection?
        if let indexer, let indexQuery, let indexWeights {
            selection = try indexer.select(indexQuery, weights: indexWeights, at: position, positions,
                                           cache.indexer!.rows)
        }
        try backend.attend(AttentionCall(
            q: q, heads: c.headCount, position: position, positions: positions, window: c.window,
            format: formats.row, ring: cache.ring, chunk: rows, compressed: cache.compressor?.rows,
            selection: selection, ratio: compressor?.ratio ?? 0, sinks: weights.sinks,
            scale: 1 / Float(c.headDim).squareRoot(), table: table, out: out))
    }
}
