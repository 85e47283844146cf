import Testing
@testable import KVStore

@Suite struct SHA1Tests {
    /// FIPS 180-4 examples, and lengths around the block's end.
    @Test(arguments: [
        ("", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
        ("abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
        ("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", "84983e441c3bd26ebaae4aa1f95129e5e54670f1"),
        (String(repeating: "a", count: 55), "c1c8bbdc22796e28c0e15163d20899b65621d65a"),
        (String(repeating: "a", count: 56), "c2db330f6083854c99d4b5bfb6e8f29f201be699"),
        (String(repeating: "a", count: 64), "0098ba824b5c16427bd7a1122a5a442a25ec644d"),
        (String(repeating: "a", count: 1_000_000), "34aa973cd4c4daa4f61eeb2bdbad27316534016f"),
    ])
    func agreesWithTheStandard(text: String, digest: String) {
        var hash = SHA1()
        hash.update(Array(text.utf8))
        #expect("\(hash.finish())" == digest)
    }

    @Test(arguments: [1, 3, 63, 64, 65, 127, 128, 129])
    func splitUpdatesGiveTheSameDigest(size: Int) {
        let bytes = (0..<1000).map { UInt8(truncatingIfNeeded: $0 * 7) }
        var whole = SHA1(), split = SHA1()
        whole.update(bytes)
        for start in stride(from: 0, to: bytes.count, by: size) {
            split.update(Array(bytes[start..<min(start + size, bytes.count)]))
        }
        #expect(whole.finish() == split.finish())
    }
}

@Suite struct XXH64Tests {
    /// From the reference implementation.
    @Test(arguments: [
        ("", 0xEF46_DB37_51D8_E999), ("a", 0xD24E_C4F1_A98C_6E5B), ("abc", 0x44BC_2CF5_AD77_0999),
    ] as [(String, UInt64)])
    func agreesWithTheReference(text: String, checksum: UInt64) {
        #expect(Array(text.utf8).withUnsafeBytes { xxh64($0) } == checksum)
    }

    @Test(arguments: [1, 31, 32, 33, 100, 513])
    func everyBitCounts(size: Int) {
        var bytes = (0..<size).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        let sound = bytes.withUnsafeBytes { xxh64($0, seed: 5) }
        #expect(bytes.withUnsafeBytes { xxh64($0, seed: 6) } != sound)
        for bit in 0..<8 * size {
            bytes[bit / 8] ^= 1 << (bit % 8)
            #expect(bytes.withUnsafeBytes { xxh64($0, seed: 5) } != sound)
            bytes[bit / 8] ^= 1 << (bit % 8)
        }
    }
}

@Suite struct KeyTests {
    @Test func keysDependOnEverythingBefore() {
        let identity = ChunkKey(hex: String(repeating: "ab", count: 20))!
        let tokens = (0..<384).map { Int32($0) }
        let chain = KeyChain(identity: identity, tokens: tokens)
        #expect(chain.keys.count == 3)
        var other = tokens
        other[0] = 9
        #expect(zip(KeyChain(identity: identity, tokens: other).keys, chain.keys).allSatisfy { $0 != $1 })
        #expect(KeyChain(identity: .none, tokens: tokens).keys[2] != chain.keys[2])
    }

    @Test(arguments: [0, 1, 127, 128, 129, 255, 256])
    func aChainGrownInStepsIsTheSame(at: Int) {
        let tokens = (0..<300).map { Int32($0 * 3) }
        var chain = KeyChain(identity: .none)
        chain.extend(to: Array(tokens[..<at]))
        chain.extend(to: tokens)
        #expect(chain.keys == KeyChain(identity: .none, tokens: tokens).keys)
        chain.truncate(toTokens: at)
        #expect(chain.keys.count == at / 128)
    }

    @Test(arguments: ["", "ab", String(repeating: "g", count: 40), String(repeating: "A", count: 40), String(repeating: "é", count: 20)])
    func onlyLowerCaseDigestsAreKeys(text: String) {
        #expect(ChunkKey(hex: text) == nil)
    }

    @Test func textAndBytesGoBothWays() {
        let key = KeyChain(identity: .none, tokens: (0..<128).map { Int32($0) }).keys[0]
        #expect(ChunkKey(hex: "\(key)") == key)
        #expect(key.bytes.withUnsafeBytes { ChunkKey(bytes: $0.baseAddress!) } == key)
    }
}
