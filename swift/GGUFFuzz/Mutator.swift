/// splitmix64: small, fast, and the same on every machine.
struct SplitMix64: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    /// A number from 0 to `bound` - 1; the slight bias does not matter here.
    mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
}

/// Damages valid files in ways that reach deep: mostly by changing a length, count, type or offset
/// to a value at which bounds checks go wrong, seldom by noise that dies at the first field.
struct Mutator {
    private var random: SplitMix64

    init(random: SplitMix64) { self.random = random }

    /// Returns `seed`'s files with one to four changes in one of them.
    mutating func mutate(_ seed: Seed) -> [String: [UInt8]] {
        var files = seed.files
        let name = seed.names[random.below(seed.names.count)]
        if random.below(64) == 0 && files.count > 1 {
            files[name] = nil
            return files
        }
        for _ in 0...random.below(4) {
            change(&files[name]!, fields: seed.fields[name]!)
        }
        return files
    }

    private mutating func change(_ bytes: inout [UInt8], fields: [GGUFBuilder.Field]) {
        guard !bytes.isEmpty else { return }
        switch random.below(16) {
        case 0..<7: setField(&bytes, fields)
        case 7: bytes[random.below(bytes.count)] ^= 1 << UInt8(random.below(8))
        case 8: bytes[random.below(bytes.count)] = UInt8(truncatingIfNeeded: random.next())
        case 9: bytes.removeLast(1 + random.below(bytes.count))
        case 10: bytes += [UInt8](repeating: 0, count: random.below(64))
        case 11: remove(&bytes)
        case 12: insertSplice(&bytes)
        case 13: overwriteSplice(&bytes)
        case 14: swapFields(&bytes, fields)
        default: copyField(&bytes, fields)
        }
    }

    /// Overwrites a structural number with one that is extreme, or one off.
    private mutating func setField(_ bytes: inout [UInt8], _ fields: [GGUFBuilder.Field]) {
        guard let field = pick(fields, in: bytes) else { return }
        let old = load(bytes, field)
        let remaining = UInt64(bytes.count - field.offset - field.width)
        let choices: [UInt64] = [
            0, 1, old &+ 1, old &- 1, old &* 2, old / 2, .max, .max - 1, 1 << 63, (1 << 63) - 1,
            1 << 62, 1 << 32, (1 << 32) - 1, 1 << 31, (1 << 31) - 1, remaining, remaining &+ 1,
            remaining &- 1, UInt64(bytes.count), UInt64.max / 32, UInt64(random.below(64)),
            old ^ (1 << UInt64(random.below(64))), .max - UInt64(random.below(64)),
        ]
        store(&bytes, field, choices[random.below(choices.count)])
    }

    private mutating func swapFields(_ bytes: inout [UInt8], _ fields: [GGUFBuilder.Field]) {
        guard let a = pick(fields, in: bytes), let b = pick(fields, in: bytes) else { return }
        let (x, y) = (load(bytes, a), load(bytes, b))
        store(&bytes, a, y)
        store(&bytes, b, x)
    }

    private mutating func copyField(_ bytes: inout [UInt8], _ fields: [GGUFBuilder.Field]) {
        guard let a = pick(fields, in: bytes), let b = pick(fields, in: bytes) else { return }
        store(&bytes, a, load(bytes, b))
    }

    private mutating func remove(_ bytes: inout [UInt8]) {
        let start = random.below(bytes.count)
        bytes.removeSubrange(start..<min(bytes.count, start + 1 + random.below(32)))
    }

    private mutating func insertSplice(_ bytes: inout [UInt8]) {
        bytes.insert(contentsOf: donor(), at: random.below(bytes.count))
    }

    private mutating func overwriteSplice(_ bytes: inout [UInt8]) {
        let piece = donor()
        let start = random.below(bytes.count)
        bytes.replaceSubrange(start..<min(bytes.count, start + piece.count), with: piece)
    }

    /// A piece of another seed that starts at one of its fields.
    private mutating func donor() -> [UInt8] {
        let seed = Seed.all[random.below(Seed.all.count)]
        let name = seed.names[random.below(seed.names.count)]
        let fields = seed.fields[name]!
        let bytes = seed.files[name]!
        let start = fields[random.below(fields.count)].offset
        return Array(bytes[start..<min(bytes.count, start + 1 + random.below(96))])
    }

    private mutating func pick(
        _ fields: [GGUFBuilder.Field], in bytes: [UInt8]
    ) -> GGUFBuilder.Field? {
        let field = fields[random.below(fields.count)]
        return field.offset + field.width <= bytes.count ? field : nil
    }

    private func load(_ bytes: [UInt8], _ field: GGUFBuilder.Field) -> UInt64 {
        (0..<field.width).reduce(0) { $0 | UInt64(bytes[field.offset + $1]) << UInt64(8 * $1) }
    }

    private func store(_ bytes: inout [UInt8], _ field: GGUFBuilder.Field, _ value: UInt64) {
        for i in 0..<field.width {
            bytes[field.offset + i] = UInt8(truncatingIfNeeded: value >> UInt64(8 * i))
        }
    }
}
