import Compute

/// Chooses, for each token, the compressed rows worth attending to.
///
/// score_s = Σ_h w_h · ReLU(q_h · k_s); the best `indexerTopK` rows are kept. Keys come from a small
/// compressor of its own; queries and keys are rotated by a Hadamard matrix and rounded to FP4.
/// Source: report §2.3.1 eqs. 13–17; reference `Indexer.forward`.
struct Indexer {
    let compressor: Compressor
    private let weights: IndexerWeights
    private let c: Configuration
    private let roundings: Bool
    private let backend: any Backend

    init(_ weights: IndexerWeights, ratio: Int, _ formats: KVFormats, _ c: Configuration, backend: any Backend) {
        self.weights = weights
        self.c = c
        self.backend = backend
        roundings = formats.roundings
        compressor = Compressor(weights.compressor, ratio: ratio, c, backend: backend)
    }

    /// The matrices that read the block's input: the compressor's, then head weights.
    var inputs: [Matrix] { compressor.inputs + [weights.proj] }
    /// The matrix that reads the query latent.
    var queries: Matrix { weights.qB }

    /// Rotates and rounds the queries [tokens, heads · dim], in place.
    func prepare(_ q: Tensor, _ rotation: Rotation) throws -> Tensor {
        try backend.indexQueries(q, heads: c.indexerHeadCount, rounded: roundings, table: rotation.table)
        return q
    }

    /// - Parameters:
    ///   - q, weights: [tokens, heads · dim] and [tokens, heads] of the batch.
    ///   - group: Of the batch's spans, one of its groups; `stores` are their index rows.
    func select(_ q: Tensor, weights: Tensor, _ group: [Int], of batch: Batch,
                _ stores: [RowStore]) throws -> [RowSelection] {
        let scale = 1 / (Float(c.indexerDim) * Float(c.indexerHeadCount)).squareRoot()
        let calls = group.map { index in
            SelectionCall(q: q[batch.rows[index]], weights: weights[batch.rows[index]], heads: c.indexerHeadCount,
                          position: batch.spans[index].position, positions: batch.positions[batch.rows[index]],
                          ratio: compressor.ratio, top: c.indexerTopK, scale: scale)
        }
        return try backend.selectRows(calls, of: stores)
    }
}
