import KVStore
import Model

/// A place in a timeline to go on from without evaluating anything. Never changes.
final class Checkpoint: @unchecked Sendable {  // `lastUsed` is guarded by its `Prefixes`
    let tokens: [Int32]
    let cache: KVCache
    /// Scores of the next token where they are known, else empty.
    let logits: [Float]
    /// Of the tokens; without keys while the engine keeps no prefixes.
    let chain: KeyChain
    /// A place where timelines were seen to part: others will come by.
    let isAnchor: Bool
    var lastUsed: UInt64 = 0
    /// Up to where this timeline is on disk; guarded by the engine's lock.
    var savedPosition = 0

    var position: Int { tokens.count }

    init(tokens: [Int32], cache: KVCache, logits: [Float], chain: KeyChain, isAnchor: Bool) {
        (self.tokens, self.cache, self.logits, self.chain, self.isAnchor) = (tokens, cache, logits, chain, isAnchor)
    }

    /// How many tokens it shares with a prompt.
    func common(with prompt: [Int32], _ promptChain: KeyChain) -> Int {
        // Equal keys mean equal tokens before them, so the last equal key can be searched for.
        var low = 0, high = min(chain.keys.count, promptChain.keys.count)
        while low < high {
            let middle = (low + high + 1) / 2
            if chain.keys[middle - 1] == promptChain.keys[middle - 1] { low = middle } else { high = middle - 1 }
        }
        return commonPrefix(tokens, prompt, from: low * KeyChain.blockTokens)
    }
}

/// Length of the common beginning; the first `from` tokens are known to be equal.
func commonPrefix(_ a: [Int32], _ b: [Int32], from: Int = 0) -> Int {
    a.withUnsafeBufferPointer { a in
        b.withUnsafeBufferPointer { b in
            let most = min(a.count, b.count)
            var at = min(from, most)
            while at < most, a[at] == b[at] { at += 1 }
            return at
        }
    }
}

/// The checkpoints a session keeps for itself: ends of prompts and some boundaries, denser towards
/// the end, where agents edit.
struct CheckpointList {
    private(set) var list: [Checkpoint] = []
    /// Each costs its own ring and running sums, 4 MB at Flash's dimensions: few while the session is
    /// short, more when the rows they stand on outweigh them.
    private static let fewest = 5, most = 16

    var last: Checkpoint? { list.last }

    /// Adds one behind the others; returns what was given up for it.
    mutating func add(_ new: Checkpoint) -> [Checkpoint] {
        var gone: [Checkpoint] = []
        if let last = list.last, last.position == new.position { list.removeLast() }
        list.append(new)
        let state = max(new.cache.stateByteCount, 1), rows = new.cache.byteCount - state
        let room = min(max(rows / 8 / state, Self.fewest), Self.most)
        while list.count > room {
            // The one whose loss costs least: a small gap, far behind the end.
            let costs = list.indices.dropLast().map { index in
                let gap = list[index + 1].position - (index == 0 ? 0 : list[index - 1].position)
                return Double(gap) / Double(new.position - list[index].position + Engine.chunkTokens)
            }
            gone.append(list.remove(at: costs.indices.min { costs[$0] < costs[$1] }!))
        }
        return gone
    }

    mutating func removeAll(behind position: Int) { list.removeAll { $0.position > position } }

    /// The furthest at or before `position`.
    func furthest(at position: Int) -> Checkpoint? { list.last { $0.position <= position } }
}
