import GGUF
import GGUFFuzz
import Testing

/// A short run of the fuzzer; `GGUFFuzz 1000000` is the long one.
@Suite struct FuzzTests {
    @Test func damagedFilesNeverCrashTheReader() {
        var fuzzer = Fuzzer(seed: 1)
        for iteration in 0..<20_000 { fuzzer.run(iteration: iteration) }
        // A fuzzer that no longer reaches the interesting places is worth nothing.
        #expect(fuzzer.acceptedCount > 1000)
        let reached = Set(fuzzer.rejectedCounts.keys)
        let impossible: Set<GGUFError.Kind> = [.unreadable, .notARegularFile, .missingKey]
        #expect(reached.union(impossible) == Set(GGUFError.Kind.allCases))
    }

    @Test func runsAreTheSameForTheSameSeed() {
        var first = Fuzzer(seed: 3)
        var second = Fuzzer(seed: 3)
        for iteration in 0..<500 {
            first.run(iteration: iteration)
            second.run(iteration: iteration)
        }
        #expect(first.checksum == second.checksum)
        #expect(first.rejectedCounts == second.rejectedCounts)
    }
}
