import Compute

/// Pools every window of `ratio` tokens into one row that stands for them in long-range attention.
///
/// At ratio 4 (CSA) windows overlap: a row mixes its own window with the one before. At ratio 128
/// (HCA) they do not. Source: report §2.3.1 eqs. 9–12 and §2.3.2 eqs. 20–23; reference
/// `Compressor.forward`.
struct Compressor {
    let ratio: Int
    private let weights: CompressorWeights
    private let format: RowFormat
    private let normEpsilon: Float
    private let backend: any Backend

    init(_ weights: CompressorWeights, ratio: Int, format: RowFormat, _ c: Configuration, backend: any Backend) {
        self.weights = weights
        self.ratio = ratio
        self.format = format
        self.backend = backend
        normEpsilon = c.normEpsilon
    }

    /// The matrices that read the block's input: kv, gate.
    var inputs: [Matrix] { [weights.kv, weights.gate] }

    /// Appends a row for every window that these tokens complete. Tokens past the last full window
    /// wait in the state's sums, so prefill in any split and decode one by one append the same rows.
    ///
    /// - Parameters:
    ///   - kv, gate: [tokens, series · dim] of one session.
    ///   - position: Position of their first token.
    func append(kv: Tensor, gate: Tensor, at position: Int, to state: inout CompressorState,
                _ rotation: Rotation) throws {
        let completed = (position + kv.rows) / ratio - position / ratio
        try state.rows.reserve(completed)
        let pooled = try backend.compress(
            kv: kv, gate: gate, bias: weights.ape, ratio: ratio,
            overlap: ratio == Configuration.overlappingRatio, position: position, state: state.sums, dim: state.dim)
        guard completed > 0 else { return }
        let normed = try backend.rmsNorm(pooled, width: state.dim, weight: weights.norm, epsilon: normEpsilon)
        // A row sits at the first position of its window.
        let first = position / ratio
        let positions = (0..<completed).map { Int32((first + $0) * ratio) }
        backend.rope(normed, heads: 1, table: try backend.ropeTable(positions, rotation.frequencies), inverse: false)
        state.rows.append(try backend.encodeRows(normed, format), count: completed)
    }

    /// Rows that each token of the span may see: row w when its window ends at or before the token.
    func visible(_ span: Span) -> [Int32] {
        span.tokens.indices.map { Int32((span.position + $0 + 1) / ratio) }
    }

    /// Attention to all visible rows, as layers without an indexer do.
    func visibleRows(_ span: Span) throws -> RowSelection {
        let counts = try backend.arena.intTensor(span.tokens.count)
        counts.ints.update(from: visible(span), count: span.tokens.count)
        return RowSelection(rows: nil, counts: counts)
    }
}
