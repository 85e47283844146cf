@testable import Compute
import Testing

@Suite struct ArenaTests {
    @Test func tensorsAreAlignedAndDoNotOverlap() throws {
        let arena = Arena()
        let tensors = try (1...300).map { try arena.tensor($0, 7) }
        var end: UInt = 0
        for tensor in tensors.sorted(by: { $0.floats < $1.floats }) {
            let start = UInt(bitPattern: tensor.floats)
            #expect(start % 64 == 0 && start >= end)
            end = start + UInt(tensor.count * 4)
        }
    }

    @Test func releasedMemoryIsTakenAgain() throws {
        let arena = Arena()
        let kept = try arena.tensor(100)
        for i in 0..<100 { kept.floats[i] = Float(i) }
        for _ in 0..<3 {
            let mark = arena.mark()
            let large = try arena.tensor(1 << 20)
            for i in 0..<large.count { large.floats[i] = -1 }
            arena.release(to: mark)
        }
        let size = arena.byteCount
        for _ in 0..<10 {
            let mark = arena.mark()
            _ = try arena.tensor(1 << 20)
            arena.release(to: mark)
        }
        #expect(arena.byteCount == size)
        #expect((0..<100).allSatisfy { kept.floats[$0] == Float($0) })
    }

    @Test func rowsOfATensorAreViewsOfIt() throws {
        let arena = Arena()
        let tensor = try arena.tensor(5, 3)
        for i in 0..<15 { tensor.floats[i] = Float(i) }
        let part = tensor[2..<4]
        #expect(part.shape == [2, 3])
        #expect(part.floats[0] == 6 && part.floats[5] == 11)
        #expect(tensor.reshaped(3, 5).width == 5)
    }

    @Test func buffersStartAtZeroAndCopiesAreApart() throws {
        let buffer = try Buffer(byteCount: 1000)
        let bytes = buffer.contents.assumingMemoryBound(to: UInt8.self)
        #expect((0..<1000).allSatisfy { bytes[$0] == 0 })
        let copy = try buffer.copy()
        bytes[7] = 9
        #expect(copy.contents.load(fromByteOffset: 7, as: UInt8.self) == 0)
    }

    @Test func memoryThatNoMachineHasIsRefused() {
        #expect(throws: ComputeError.self) { try Buffer(byteCount: Int.max / 2) }
    }
}
