/// SHA-1 (FIPS 180-4): names chunks by what is in them. Not used against anybody who forges.
public struct SHA1: Sendable {
    private var state: (UInt32, UInt32, UInt32, UInt32, UInt32) = (
        0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0)
    private var pending: [UInt8] = []
    private var byteCount: UInt64 = 0

    public init() {}

    public mutating func update(_ bytes: UnsafeRawBufferPointer) {
        byteCount += UInt64(bytes.count)
        var rest = bytes[...]
        if !pending.isEmpty {
            let taken = min(64 - pending.count, rest.count)
            pending += rest.prefix(taken)
            rest = rest.dropFirst(taken)
            guard pending.count == 64 else { return }
            let block = pending
            block.withUnsafeBytes { compress($0.baseAddress!) }
            pending.removeAll(keepingCapacity: true)
        }
        while rest.count >= 64 {
            compress(UnsafeRawBufferPointer(rebasing: rest).baseAddress!)
            rest = rest.dropFirst(64)
        }
        pending += rest
    }

    public mutating func update(_ bytes: [UInt8]) { bytes.withUnsafeBytes { update($0) } }

    /// Token ids as little-endian 32-bit integers.
    public mutating func update(_ tokens: ArraySlice<Int32>) { tokens.withUnsafeBytes { update($0) } }

    /// The digest, 20 bytes. The hash must not be updated afterwards.
    public mutating func finish() -> ChunkKey {
        let bitCount = byteCount * 8
        var tail: [UInt8] = [0x80]
        tail += [UInt8](repeating: 0, count: (119 - pending.count) % 64)
        withUnsafeBytes(of: bitCount.bigEndian) { tail += $0 }
        update(tail)
        return ChunkKey(state)
    }

    private mutating func compress(_ block: UnsafeRawPointer) {
        withUnsafeTemporaryAllocation(of: UInt32.self, capacity: 80) { w in
            for i in 0..<16 { w[i] = UInt32(bigEndian: block.loadUnaligned(fromByteOffset: i * 4, as: UInt32.self)) }
            for i in 16..<80 {
                let x = w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16]
                w[i] = x << 1 | x >> 31
            }
            var (a, b, c, d, e) = state
            func step(_ f: UInt32, _ k: UInt32, _ word: UInt32) {
                let next = (a << 5 | a >> 27) &+ f &+ e &+ k &+ word
                (e, d, c, b, a) = (d, c, b << 30 | b >> 2, a, next)
            }
            for i in 0..<20 { step(b & c | ~b & d, 0x5A82_7999, w[i]) }
            for i in 20..<40 { step(b ^ c ^ d, 0x6ED9_EBA1, w[i]) }
            for i in 40..<60 { step(b & c | b & d | c & d, 0x8F1B_BCDC, w[i]) }
            for i in 60..<80 { step(b ^ c ^ d, 0xCA62_C1D6, w[i]) }
            state = (state.0 &+ a, state.1 &+ b, state.2 &+ c, state.3 &+ d, state.4 &+ e)
        }
    }
}
