import Compute

/// One block: attention, then experts, each inside a hyper-connection.
///
/// Source: report §2.2; reference `Block.forward`.
struct Block {
    let isCompressed: Bool
    private let weights: BlockWeights
    private let normEpsilon: Float
    private let backend: any Backend
    private let attention: Attention
    private let moe: MoE

    init(_ weights: BlockWeights, _ c: Configuration, _ formats: KVFormats, layer: Int, backend: any Backend) {
        self.weights = weights
        self.backend = backend
        normEpsilon = c.normEpsilon
        isCompressed = c.compressRatios[layer] != 0
        attention = Attention(weights.attention, c, formats, layer: layer, backend: backend)
        moe = MoE(weights.moe, c, layer: layer, backend: backend)
    }

    /// `streams` is [tokens, 4, D], in and out.
    func callAsFunction(_ streams: Tensor, _ batch: Batch, _ caches: inout [KVCache], _ rotation: Rotation) throws {
        try hyperConnection(streams, weights.attnHC, weights.attnNorm) { x in
            try attention(x, batch, &caches, rotation)
        }
        try hyperConnection(streams, weights.ffnHC, weights.ffnNorm) { x in
            try moe(x, batch.tokens)
        }
    }

    /// Collapses the streams to one normed input, runs the sublayer, and spreads its output back.
    private func hyperConnection(_ streams: Tensor, _ hc: HyperConnectionWeights, _ norm: Vector,
                                 _ sublayer: (Tensor) throws -> Tensor) throws {
        let (x, mix) = try backend.hcEnter(streams, hc, norm: norm, epsilon: normEpsilon)
        try backend.hcLeave(streams, sublayer(x), mix)
    }
}
