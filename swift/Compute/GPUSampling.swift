import CKernels
import GPUSources
#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// How one token is chosen from its logits; see `sampling_choose`.
public struct TokenChoice: Sendable {
    public let temperature: Float
    public let topP: Float
    public let minP: Float
    public let topK: Int32
    /// In [0, 1).
    public let random: Double

    public init(temperature: Float, topP: Float, minP: Float, topK: Int32, random: Double) {
        self.temperature = temperature
        self.topP = topP
        self.minP = minP
        self.topK = topK
        self.random = random
    }

    var isGreedy: Bool { !(temperature > 0) || topK == 1 }
}

extension GPUBackend {
    /// So many of the highest logits come to the CPU. They hold nearly all of the weight in practice; when the
    /// choice falls outside, all logits are needed.
    static let listedCount = 256

    public func choose(_ logits: Tensor, _ choices: [TokenChoice]) throws -> [Int32]? {
        let n = logits.rows, isGreedy = choices.allSatisfy(\.isGreedy)
        let listed = isGreedy ? 0 : min(Self.listedCount, logits.width), width = 3 + 2 * listed
        let mark = arena.mark()
        defer { arena.release(to: mark) }
        let temperatures = try upload(choices.map { Int32(bitPattern: ($0.isGreedy ? 1 : $0.temperature).bitPattern) })
        let selected = try arena.intTensor(n, max(listed, 1)), counts = try arena.intTensor(n)
        let out = try arena.intTensor(n, width)
        if listed > 0 {
            let ends = try upload([Int32](repeating: Int32(logits.width) - 1, count: n))
            dispatch(.indexer_top_k, (n, 1, 1), [logits.floats.raw, ends.ints.raw, selected.ints.raw, counts.ints.raw],
                     gpu_indexer(format: gpu_row_format(), n: UInt32(n), heads: 1, ratio: 1, rows_per_page: 1,
                                 stride: UInt32(logits.width), top: UInt32(listed), scale: 1, table_stride: 0))
        }
        dispatch(.sampling_scan, (n, 1, 1),
                 [logits.floats.raw, temperatures.ints.raw, selected.ints.raw, counts.ints.raw, out.ints.raw],
                 gpu_sampling(count: UInt32(logits.width), listed: UInt32(listed)))
        var found = [Int32](repeating: 0, count: n * width)
        found.withUnsafeMutableBytes { gpu.read(out.ints, into: $0.baseAddress!, byteCount: $0.count) }
        try gpu.check()
        var tokens: [Int32] = []
        for (row, choice) in choices.enumerated() {
            guard let token = SampledRow(found[row * width..<(row + 1) * width], of: logits.width).choose(choice) else { return nil }
            tokens.append(token)
        }
        return tokens
    }
}

/// What a device says of a row of logits.
struct SampledRow {
    let best: Int32
    let top: Float
    /// Weights of all tokens; the best one's is 1.
    let total: Float
    /// The highest logits, by descending logit, then ascending id.
    let list: [(id: Int32, logit: Float)]
    let isWhole: Bool

    /// - Parameter words: A row of `sampling_scan`'s result, for `count` logits.
    init(_ words: ArraySlice<Int32>, of count: Int) {
        let words = Array(words), listed = (words.count - 3) / 2
        best = words[0]
        top = Float(bitPattern: UInt32(bitPattern: words[1]))
        total = Float(bitPattern: UInt32(bitPattern: words[2]))
        list = (0..<listed).filter { words[3 + $0] >= 0 }
            .map { (words[3 + $0], Float(bitPattern: UInt32(bitPattern: words[3 + listed + $0]))) }
            .filter { !$0.1.isNaN }
            .sorted { $0.1 > $1.1 || ($0.1 == $1.1 && $0.0 < $1.0) }
        isWhole = listed == count
    }

    /// The token that `sampling_choose` would choose from all logits, but for the rounding of `total`; nil
    /// when the list does not say.
    func choose(_ choice: TokenChoice) -> Int32? {
        guard best >= 0 else { return nil }
        if choice.isGreedy || top == .infinity { return best }
        let least = top - 40 * choice.temperature
        let inReach = Array(list.prefix { $0.logit >= least })
        // Nothing is left out when the list goes further down than any choice.
        var candidates = inReach[...], all = Double(total), isComplete = isWhole || inReach.count < list.count
        func weight(_ logit: Float) -> Double { exp((Double(logit) - Double(top)) / Double(choice.temperature)) }
        if choice.topK > 0 {
            guard isComplete || Int(choice.topK) <= candidates.count else { return nil }
            candidates = candidates.prefix(Int(choice.topK))
            isComplete = true
        }
        if isComplete { all = candidates.reduce(0) { $0 + weight($1.logit) } }
        var kept = 0.0, count = 0, hasEnded = false
        for candidate in candidates {
            let own = weight(candidate.logit)
            if count > 0, kept >= Double(choice.topP) * all || own < Double(choice.minP) {
                hasEnded = true
                break
            }
            kept += own
            count += 1
        }
        if !hasEnded, !isComplete {
            guard choice.topP == 1, choice.minP == 0 else { return nil }
            kept = all
        }
        var at = choice.random * kept
        for candidate in candidates.prefix(count) {
            at -= weight(candidate.logit)
            if at < 0 { return candidate.id }
        }
        return hasEnded || isComplete ? candidates[candidates.startIndex + count - 1].id : nil
    }
}
