import Compute

/// Pools every window of `ratio` tokens into one row that stands for them in long-range attention.
///
/// At ratio 4 (CSA) windows overlap: a row mixes its own window with the one before. At ratio 128
/// (HCA) they do not. Source: report §2.3.1 eqs. 9–12 and §2.3.2 eqs. 20–23; reference
/// `Compressor.forward`.
struct Compressor {
    let ratio: Int
    private let weights: CompressorWeights
    private let normEpsilon: Float
    private let backend: any Backend

    init(_ weights: CompressorWeights, ratio: Int, _ c: Configuration, backend: any Backend) {
        self.weights = weights
        self.ratio = ratio
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
    ///   - position, positions: Where its tokens are, the first and all of them.
    func append(kv: Tensor, gate: Tensor, at position: Int, _ positions: IntTensor, to state: inout CompressorState,
                _ rotation: Rotation) throws {
        let call = CompressorCall(
            kv: kv, gate: gate, bias: weights.ape, norm: weights.norm, epsilon: normEpsilon, ratio: ratio,
            overlaps: ratio == Configuration.overlappingRatio, position: position, positions: positions,
            frequencies: rotation.frequencies, state: state.sums)
        try state.rows.reserve(call.completed)
        try backend.compress(call, into: &state.rows)
    }
}
