import Compute

/// The feed-forward half of a block: a few routed experts a token, and one that all tokens share.
///
/// Source: report §2.1; reference `MoE.forward`.
struct MoE {
    private let weights: MoEWeights
    private let c: Configuration
    private let clamp: Float
    private let sharedClamp: Float
    private let backend: any Backend

    init(_ weights: MoEWeights, _ c: Configuration, layer: Int, backend: any Backend) {
        self.weights = weights
        self.c = c
        self.backend = backend
        clamp = c.expertClamps[layer]
        sharedClamp = c.sharedExpertClamps[layer]
    }

    /// x [tokens, D], normed → [tokens, D].
    func callAsFunction(_ x: Tensor, _ tokens: IntTensor) throws -> Tensor {
        let fromX = try backend.project(x, [weights.gateInp, weights.gateShexp, weights.upShexp])
        return try backend.experts(ExpertsCall(
            x: x, gate: weights.gateExps, up: weights.upExps, down: weights.downExps,
            routing: try route(fromX[0], tokens), clamp: clamp, sharedGate: fromX[1], sharedUp: fromX[2],
            sharedDown: weights.downShexp, sharedClamp: sharedClamp))
    }

    private func route(_ logits: Tensor, _ tokens: IntTensor) throws -> Routing {
        switch weights.router {
        case let .learned(bias):
            try backend.routeTopK(logits, bias: bias, used: c.expertUsedCount, scale: c.routeScale)
        case let .hash(table):
            try backend.routeHash(logits, table: table, tokens: tokens, used: c.expertUsedCount, scale: c.routeScale)
        }
    }
}
