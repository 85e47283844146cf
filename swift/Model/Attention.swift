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
            for group in batch.groups { try compress(group, batch, fromX, &caches, rotation) }
            return (queryLatent, rows)
        }
        let fromLatent = try backend.project(queryLatent, [weights.qB] + (indexer.map { [$0.queries] } ?? []))
        let (q, indexQuery) = try backend.concurrently(true) {
            (try backend.queries(fromLatent[0], heads: c.headCount, epsilon: c.normEpsilon, table: rotation.table),
             try indexer?.prepare(fromLatent[1], rotation))
        }
        let attended = try backend.arena.tensor(x.rows, c.headCount * c.headDim)
        for group in batch.groups {
            try attend(group, batch, caches, q, rows, indexQuery, fromX.last!, rotation.table, into: attended)
        }
        let latent = try backend.projectGroups(attended, weights.outputA, groups: c.outputGroupCount)
        return try backend.project(latent, [weights.outputB])[0]
    }

    /// Extends the compressed rows of the sessions of a group. `inputs`: from x, kv and gate of the compressor
    /// after two others, then of the indexer's.
    private func compress(_ group: [Int], _ batch: Batch, _ inputs: [Tensor], _ caches: inout [KVCache],
                          _ rotation: Rotation) throws {
        try compressor?.append(kv: inputs[2], gate: inputs[3], group, of: batch, rotation) { index, body in
            try body(&caches[index].layers[layer].compressor!)
        }
        try indexer?.compressor.append(kv: inputs[4], gate: inputs[5], group, of: batch, rotation) { index, body in
            try body(&caches[index].layers[layer].indexer!)
        }
    }

    /// The tokens of a group's sessions attend to their windows and compressed rows; their own rows go into
    /// the rings.
    private func attend(_ group: [Int], _ batch: Batch, _ caches: [KVCache], _ q: Tensor,
                        _ rows: UnsafeMutablePointer<UInt8>, _ indexQuery: Tensor?, _ indexWeights: Tensor,
                        _ table: Tensor, into out: Tensor) throws {
        var selections: [RowSelection]?
        if let indexer, let indexQuery {
            selections = try indexer.select(indexQuery, weights: indexWeights, group, of: batch,
                                            group.map { caches[$0].layers[layer].indexer!.rows })
        }
        try backend.attend(group.enumerated().map { place, index in
            let cache = caches[index].layers[layer], range = batch.rows[index]
            return AttentionCall(
                q: q[range], heads: c.headCount, position: batch.spans[index].position,
                positions: batch.positions[range], window: c.window, format: formats.row, ring: cache.ring,
                chunk: rows + range.lowerBound * formats.row.byteCount, compressed: cache.compressor?.rows,
                selection: selections?[place], ratio: compressor?.ratio ?? 0, sinks: weights.sinks,
                scale: 1 / Float(c.headDim).squareRoot(), table: table[range], out: out[range])
        })
    }
}
