import GGUF
import Model

/// What a model needs in bytes, from its file's header alone.
public struct MemoryPlan {
    public let weights: Int
    /// Of one session that holds `tokens` tokens.
    public let kv: Int
    /// Activations of the largest chunk of a prompt: the widest tensors that live at once.
    public let buffers: Int

    public init(_ file: GGUFFile, _ c: Configuration, tokens: Int, roundings: Bool,
                chunkTokens: Int? = nil) {
        weights = file.tensors.reduce(0) { $0 + $1.byteCount }
        kv = KVCache.byteCount(c, KVFormats(c, roundings: roundings), tokens: tokens)
        let heads = c.headCount * c.headDim
        let routed = c.expertUsedCount * (c.hiddenSize + c.expertSize)
        let widest = 4 * c.hiddenSize + max(4 * heads, 2 * routed) + 6 * c.hiddenSize + c.outputGroupCount * c.outputRank
        buffers = min(tokens, chunkTokens ?? Engine.chunkTokens) * widest * 4
    }
}
