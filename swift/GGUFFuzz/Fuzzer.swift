import GGUF

/// Opens damaged files and walks whatever is accepted. A broken promise of the reader, like an
/// access out of bounds, stops the process.
package struct Fuzzer {
    package private(set) var acceptedCount = 0
    package private(set) var rejectedCounts: [GGUFError.Kind: Int] = [:]
    /// Sum over everything that was read, so that no read can be optimised away.
    package private(set) var checksum: UInt64 = 0
    private let seed: UInt64

    package init(seed: UInt64) { self.seed = seed }

    /// Runs one case; the same `iteration` and seed always make the same case.
    package mutating func run(iteration: Int) {
        var random = SplitMix64(seed: seed &+ UInt64(iteration) &* 0x2545_f491_4f6c_dd1d)
        let original = Seed.all[random.below(Seed.all.count)]
        var mutator = Mutator(random: random)
        let files = mutator.mutate(original)
        do {
            let file = try GGUFFile(path: original.path, in: files)
            acceptedCount += 1
            walk(file, sizes: files.mapValues(\.count))
        } catch {
            check(error, files)
            rejectedCounts[error.kind, default: 0] += 1
        }
    }

    private mutating func check(_ error: GGUFError, _ files: [String: [UInt8]]) {
        precondition(!error.expected.isEmpty && !error.found.isEmpty && !error.subject.isEmpty)
        if let offset = error.offset {
            precondition((0...(files[error.file]?.count ?? 0)).contains(offset), "\(error)")
        }
        checksum &+= UInt64(error.description.utf8.count)
    }

    private mutating func walk(_ file: GGUFFile, sizes: [String: Int]) {
        for entry in file.metadata {
            precondition(file.value(entry.key)?.offset == entry.value.offset)
            walk(entry.value)
        }
        defer { withExtendedLifetime(file) {} }
        var ends: [Int: [(start: Int, end: Int)]] = [:]
        for tensor in file.tensors {
            precondition(file.tensor(tensor.name)?.fileOffset == tensor.fileOffset)
            precondition((1...4).contains(tensor.shape.count) && tensor.elementCount > 0)
            precondition(tensor.bytesPerRow * (tensor.elementCount / tensor.shape[0])
                == tensor.byteCount)
            precondition(Int(bitPattern: tensor.pointer) % 8 == 0)
            let end = tensor.fileOffset + tensor.byteCount
            precondition(end <= sizes[file.paths[tensor.fileIndex]]!)
            checksum &+= UInt64(tensor.pointer.load(as: UInt8.self))
            checksum &+= UInt64(
                tensor.pointer.load(fromByteOffset: tensor.byteCount - 1, as: UInt8.self))
            ends[tensor.fileIndex, default: []].append((tensor.fileOffset, end))
        }
        for spans in ends.values {
            let inOrder = spans.sorted { $0.start < $1.start }
            precondition(zip(inOrder, inOrder.dropFirst()).allSatisfy { $0.end <= $1.start })
        }
    }

    /// Calls every accessor: the wrong ones must refuse, the right one give `count` elements.
    private mutating func walk(_ value: GGUFValue) {
        checksum &+= value.withBytes { $0.reduce(0) { $0 &+ UInt64($1) } }
        var answers = 0
        func answer(_ accessor: () throws(GGUFError) -> Int) {
            do {
                let count = try accessor()
                precondition(count == value.count, value.name)
                answers += 1
            } catch {
                precondition(!error.description.isEmpty)
            }
        }
        answer { () throws(GGUFError) in _ = try value.uint(); return 1 }
        answer { () throws(GGUFError) in _ = try value.int(); return 1 }
        answer { () throws(GGUFError) in _ = try value.float(); return 1 }
        answer { () throws(GGUFError) in _ = try value.bool(); return 1 }
        answer { () throws(GGUFError) in _ = try value.string(); return 1 }
        answer { () throws(GGUFError) in try value.uintArray().count }
        answer { () throws(GGUFError) in try value.intArray().count }
        answer { () throws(GGUFError) in try value.floatArray().count }
        answer { () throws(GGUFError) in try value.boolArray().count }
        answer { () throws(GGUFError) in try value.stringArray().count }
        answer { () throws(GGUFError) in
            var count = 0
            try value.forEachString { _ in count += 1 }
            return count
        }
        precondition(answers <= 2)
        if value.elementType == .array {
            do {
                let inner = try value.arrays()
                precondition(inner.count == value.count)
                for array in inner { walk(array) }
            } catch {
                preconditionFailure("checked at open: \(error)")
            }
        }
    }
}
