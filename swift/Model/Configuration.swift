import GGUF

/// The shapes and constants of one model, read from its file; nothing is hard-wired to Flash or Pro.
///
/// Source: report §4.2 for the published shapes, the GGUF keys are those of the published files.
public struct Configuration: Sendable {
    public let name: String
    public let layerCount: Int
    /// Tokens the file says the model was made for.
    public let contextLength: Int
    public let hiddenSize: Int
    public let vocabularySize: Int

    public let headCount: Int
    public let headDim: Int
    public let ropeDim: Int
    public let queryRank: Int
    public let outputGroupCount: Int
    public let outputRank: Int
    public let window: Int
    /// One a layer: 0 sliding window only, 4 overlapping windows and indexer (CSA), else plain (HCA).
    public let compressRatios: [Int]
    public let indexerHeadCount: Int
    public let indexerDim: Int
    public let indexerTopK: Int

    public let expertCount: Int
    public let expertUsedCount: Int
    public let expertSize: Int
    public let routeScale: Float
    public let hashLayerCount: Int
    /// One a layer; 0 or less: no clamp.
    public let expertClamps: [Float]
    public let sharedExpertClamps: [Float]

    public let sinkhornIterations: Int
    public let hyperConnectionEpsilon: Float
    public let normEpsilon: Float

    public let ropeBase: Double
    public let compressedRopeBase: Double
    public let yarn: Yarn?

    /// Rotary scaling of the layers with compression: report §4.2.1, YaRN without attention factor.
    public struct Yarn: Sendable {
        public let factor: Double
        public let originalContext: Int
        public let betaFast: Double
        public let betaSlow: Double
    }

    /// Ratio whose windows overlap and whose rows an indexer selects.
    public static let overlappingRatio = 4

    /// - Throws: `GGUFError` for a missing or mistyped key, `ModelError` for values that no model has.
    public init(_ file: GGUFFile) throws {
        let path = file.paths[0]
        let architecture = try file.string("general.architecture")
        guard architecture == "deepseek4" else {
            throw ModelError.wrongArchitecture(file: path, found: architecture)
        }
        func uint(_ key: String) throws -> Int { try file.uint("deepseek4." + key) }
        func float(_ key: String) throws -> Float { Float(try file.float("deepseek4." + key)) }

        name = try file.string("general.name", default: "")
        layerCount = try uint("block_count")
        contextLength = try uint("context_length")
        hiddenSize = try uint("embedding_length")
        vocabularySize = try uint("vocab_size")
        headCount = try uint("attention.head_count")
        headDim = try uint("attention.key_length")
        ropeDim = try uint("rope.dimension_count")
        queryRank = try uint("attention.q_lora_rank")
        outputGroupCount = try uint("attention.output_group_count")
        outputRank = try uint("attention.output_lora_rank")
        window = try uint("attention.sliding_window")
        compressRatios = try file.uintArray("deepseek4.attention.compress_ratios")
        indexerHeadCount = try uint("attention.indexer.head_count")
        indexerDim = try uint("attention.indexer.key_length")
        indexerTopK = try uint("attention.indexer.top_k")
        expertCount = try uint("expert_count")
        expertUsedCount = try uint("expert_used_count")
        expertSize = try uint("expert_feed_forward_length")
        routeScale = try float("expert_weights_scale")
        hashLayerCount = try uint("hash_layer_count")
        sinkhornIterations = try uint("hyper_connection.sinkhorn_iterations")
        hyperConnectionEpsilon = try float("hyper_connection.epsilon")
        normEpsilon = try float("attention.layer_norm_rms_epsilon")
        ropeBase = try file.float("deepseek4.rope.freq_base")
        compressedRopeBase = try file.float("deepseek4.attention.compress_rope_freq_base")

        let clamps = try file.floatArray("deepseek4.swiglu_clamp_exp").map { Float($0) }
        expertClamps = clamps
        sharedExpertClamps = file.value("deepseek4.swiglu_clamp_shexp") == nil
            ? clamps : try file.floatArray("deepseek4.swiglu_clamp_shexp").map { Float($0) }

        switch try file.string("deepseek4.rope.scaling.type", default: "none") {
        case "yarn":
            yarn = Yarn(factor: try file.float("deepseek4.rope.scaling.factor"),
                        originalContext: try uint("rope.scaling.original_context_length"),
                        betaFast: try file.float("deepseek4.rope.scaling.yarn_beta_fast", default: 32),
                        betaSlow: try file.float("deepseek4.rope.scaling.yarn_beta_slow", default: 1))
        case "none":
            yarn = nil
        case let other:
            throw ModelError.badValue(file: path, key: "deepseek4.rope.scaling.type", expected: "yarn or none",
                                      found: other)
        }
        try check(file, path)
    }

    /// Values that the kernels rely on; each message names the key.
    private func check(_ file: GGUFFile, _ path: String) throws {
        func require(_ ok: Bool, _ key: String, _ expected: String, _ found: some CustomStringConvertible) throws {
            guard ok else {
                throw ModelError.badValue(file: path, key: "deepseek4." + key, expected: expected,
                                          found: found.description)
            }
        }
        let sizes: [(String, Int, Int)] = [
            ("block_count", layerCount, 4096), ("context_length", contextLength, 1 << 30),
            ("embedding_length", hiddenSize, 1 << 17), ("vocab_size", vocabularySize, 1 << 24),
            ("attention.head_count", headCount, 4096), ("attention.key_length", headDim, 4096),
            ("rope.dimension_count", ropeDim, headDim), ("attention.q_lora_rank", queryRank, 1 << 16),
            ("attention.output_group_count", outputGroupCount, headCount),
            ("attention.output_lora_rank", outputRank, 1 << 16), ("attention.sliding_window", window, 1 << 16),
            ("attention.indexer.head_count", indexerHeadCount, 4096),
            ("attention.indexer.top_k", indexerTopK, 1 << 20), ("expert_count", expertCount, 1 << 16),
            ("expert_used_count", expertUsedCount, expertCount),
            ("expert_feed_forward_length", expertSize, 1 << 17),
            ("hyper_connection.sinkhorn_iterations", sinkhornIterations, 1000),
        ]
        for (key, value, most) in sizes {
            try require((1...most).contains(value), key, "a number from 1 to \(most)", value)
        }
        try require(headDim % 64 == 0, "attention.key_length", "a multiple of 64", headDim)
        try require(ropeDim % 2 == 0 && (headDim - ropeDim) % 64 == 0, "rope.dimension_count",
                    "an even number that leaves a multiple of 64 of the \(headDim) values of a head", ropeDim)
        try require((32...512).contains(indexerDim) && indexerDim.nonzeroBitCount == 1,
                    "attention.indexer.key_length", "a power of two from 32 to 512", indexerDim)
        try require(ropeDim <= indexerDim, "attention.indexer.key_length", "at least the rotated \(ropeDim)",
                    indexerDim)
        try require(headCount % outputGroupCount == 0, "attention.output_group_count",
                    "a divisor of the \(headCount) heads", outputGroupCount)
        try require(compressRatios.count == layerCount, "attention.compress_ratios",
                    "one ratio for each of \(layerCount) layers", compressRatios.count)
        for ratio in compressRatios {
            try require(ratio >= 0 && ratio != 1 && ratio <= 1 << 16, "attention.compress_ratios",
                        "0 or a ratio from 2 on", ratio)
        }
        try checkNumbers(require)
        try require(hashLayerCount <= layerCount, "hash_layer_count", "at most \(layerCount)", hashLayerCount)
        for (key, clamps) in [("swiglu_clamp_exp", expertClamps), ("swiglu_clamp_shexp", sharedExpertClamps)] {
            try require(clamps.count == layerCount, key, "one clamp for each of \(layerCount) layers", clamps.count)
        }
        let streams = try file.uint("deepseek4.hyper_connection.count")
        try require(streams == 4, "hyper_connection.count", "4 (the only count the model has)", streams)
        let gating = try file.uint("deepseek4.expert_gating_func", default: 4)
        try require(gating == 4, "expert_gating_func", "4 (sqrt of softplus)", gating)
        let shared = try file.uint("deepseek4.expert_shared_count", default: 1)
        try require(shared == 1, "expert_shared_count", "1", shared)
        let heads = try file.uint("deepseek4.attention.head_count_kv", default: 1)
        try require(heads == 1, "attention.head_count_kv", "1 (keys and values are one shared row)", heads)
        let values = try file.uint("deepseek4.attention.value_length", default: headDim)
        try require(values == headDim, "attention.value_length", "the key length, \(headDim)", values)
    }

    /// Floating-point values that would make every logit a NaN.
    private func checkNumbers(_ require: (Bool, String, String, String) throws -> Void) throws {
        for (key, base) in [("rope.freq_base", ropeBase), ("attention.compress_rope_freq_base", compressedRopeBase)] {
            try require(base > 1 && base.isFinite, key, "a number of more than 1", "\(base)")
        }
        for (key, epsilon) in [("attention.layer_norm_rms_epsilon", normEpsilon),
                               ("hyper_connection.epsilon", hyperConnectionEpsilon)] {
            try require((0...1).contains(epsilon), key, "a number from 0 to 1", "\(epsilon)")
        }
        try require(routeScale.isFinite, "expert_weights_scale", "a number", "\(routeScale)")
        for (key, clamps) in [("swiglu_clamp_exp", expertClamps), ("swiglu_clamp_shexp", sharedExpertClamps)] {
            try require(!clamps.contains { $0.isNaN }, key, "a number for each layer", "\(clamps)")
        }
        guard let yarn else { return }
        try require((1...(1 << 30)).contains(yarn.originalContext), "rope.scaling.original_context_length",
                    "a number from 1 to \(1 << 30)", "\(yarn.originalContext)")
        for (key, value) in [("factor", yarn.factor), ("yarn_beta_fast", yarn.betaFast), ("yarn_beta_slow", yarn.betaSlow)] {
            try require(value > 0 && value.isFinite, "rope.scaling." + key, "a number of more than 0", "\(value)")
        }
    }
}

/// What makes a well-formed GGUF file no model that can be run.
public enum ModelError: Error, CustomStringConvertible {
    case wrongArchitecture(file: String, found: String)
    case badValue(file: String, key: String, expected: String, found: String)
    case missingTensor(file: String, name: String)
    case wrongShape(file: String, name: String, expected: [Int], found: [Int])
    case unsupportedType(file: String, name: String, type: String)
    case badTensor(file: String, name: String, reason: String)

    public var description: String {
        switch self {
        case let .wrongArchitecture(file, found):
            "\(file): expected general.architecture 'deepseek4', found '\(found)'"
        case let .badValue(file, key, expected, found):
            "\(file): metadata '\(key)': expected \(expected), found \(found)"
        case let .missingTensor(file, name):
            "\(file): tensor '\(name)' is missing"
        case let .wrongShape(file, name, expected, found):
            "\(file): tensor '\(name)': expected shape \(expected), found \(found)"
        case let .unsupportedType(file, name, type):
            "\(file): tensor '\(name)': type \(type) cannot be computed with"
        case let .badTensor(file, name, reason):
            "\(file): tensor '\(name)': \(reason)"
        }
    }
}
