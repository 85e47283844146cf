// GGUFFuzz [iterations] [seed] [first] — damage GGUF files in memory and open them.
//
// Runs are deterministic. A crash prints the iteration it happened in; `GGUFFuzz 1 SEED ITERATION`
// runs that one alone, under a debugger if need be.

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// Written by the loop, read by the signal handler on the same thread.
nonisolated(unsafe) var currentIteration = 0

func complain(_ message: String) {
    _ = message.utf8CString.withUnsafeBytes { write(2, $0.baseAddress, $0.count - 1) }
}

func argument(_ index: Int, _ name: String, default other: UInt64) -> UInt64 {
    guard CommandLine.arguments.count > index else { return other }
    guard let value = UInt64(CommandLine.arguments[index]), value <= Int.max else {
        complain("usage: GGUFFuzz [iterations] [seed] [first]: \(name) is not a number\n")
        exit(2)
    }
    return value
}

let iterations = Int(argument(1, "iterations", default: 1_000_000))
let seed = argument(2, "seed", default: 1)
let first = Int(argument(3, "first", default: 0))

for crash in [SIGILL, SIGTRAP, SIGSEGV, SIGBUS, SIGABRT] {
    signal(crash) { number in
        // The heap may be what broke, so nothing is allocated here: digits go onto the stack,
        // last one first.
        withUnsafeTemporaryAllocation(byteCount: 32, alignment: 1) { digits in
            var start = digits.count - 1
            digits[start] = 0x0a
            var rest = currentIteration
            repeat {
                start -= 1
                digits[start] = 0x30 + UInt8(rest % 10)
                rest /= 10
            } while rest > 0
            let text: StaticString = "GGUFFuzz: crash in iteration "
            _ = write(2, text.utf8Start, text.utf8CodeUnitCount)
            _ = write(2, digits.baseAddress! + start, digits.count - start)
        }
        signal(number, SIG_DFL)
        raise(number)
    }
}

var fuzzer = Fuzzer(seed: seed)
let clock = ContinuousClock()
let start = clock.now
for iteration in first..<first + iterations {
    currentIteration = iteration
    fuzzer.run(iteration: iteration)
}
let elapsed = (clock.now - start) / .seconds(1)
let kinds = fuzzer.rejectedCounts.sorted { $0.key.rawValue < $1.key.rawValue }
    .map { "\($0.key.rawValue) \($0.value)" }.joined(separator: ", ")
print(
    "GGUFFuzz: \(iterations) executions in \(Int(elapsed.rounded())) s, "
        + "\(Int(Double(iterations) / max(elapsed, 1e-9))) per second, no crash; "
        + "\(fuzzer.acceptedCount) accepted; rejected: \(kinds); checksum \(fuzzer.checksum)")
