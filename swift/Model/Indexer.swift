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

    func select(_ q: Tensor, weights: Tensor, at position: Int, _ positions: IntTensor,
                _ rows: RowStore) throws -> RowSelection {
        let scale = 1 / (Float(c.indexerDim) * Float(c.indexerHeadCount)).squareRoot()
        return try backend.selectRows(
            SelectionCall(q: q, weights: weights, heads: c.indexerHeadCount, position: position,
                          positions: positions, ratio: compressor.ratio, top: c.indexerTopK, scale: scale),
            of: rows)
    }
}
