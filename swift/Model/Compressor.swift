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
    ///   - kv, gate: [tokens, series · dim] of the batch.
    ///   - group: Of the batch's spans, one of its groups.
    ///   - withState: Hands over the state of this compressor in the cache of a span.
    func append(kv: Tensor, gate: Tensor, _ group: [Int], of batch: Batch, _ rotation: Rotation,
                withState: (Int, (inout CompressorState) throws -> Void) throws -> Void) throws {
        var calls: [CompressorCall] = [], stores: [RowStore] = []
        for index in group {
            let rows = batch.rows[index]
            try withState(index) { state in
                let call = CompressorCall(
                    kv: kv[rows], gate: gate[rows], bias: weights.ape, norm: weights.norm, epsilon: normEpsilon,
                    ratio: ratio, overlaps: ratio == Configuration.overlappingRatio,
                    position: batch.spans[index].position, positions: batch.positions[rows],
                    frequencies: rotation.frequencies, state: state.sums)
                try state.rows.reserve(call.completed)
                calls.append(call)
                stores.append(state.rows)
            }
        }
        try backend.compress(calls, into: stores)
        for (index, call) in zip(group, calls) { try withState(index) { $0.rows.extend(by: call.completed) } }
    }
}
