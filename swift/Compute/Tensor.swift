/// Activations: `shape` floats in memory that an `Arena` owns, row-major. Only its backend may follow
/// the address.
public struct Tensor {
    public let shape: [Int]
    public let floats: UnsafeMutablePointer<Float>

    public var count: Int { shape.reduce(1, *) }
    public var rows: Int { shape[0] }
    /// Floats in one row.
    public var width: Int { count / max(shape[0], 1) }

    public init(shape: [Int], floats: UnsafeMutablePointer<Float>) {
        self.shape = shape
        self.floats = floats
    }

    /// Rows `range` as a tensor of their own over the same memory.
    public subscript(range: Range<Int>) -> Tensor {
        precondition(range.lowerBound >= 0 && range.upperBound <= rows, "rows \(range) of \(rows)")
        return Tensor(shape: [range.count] + shape.dropFirst(), floats: floats + range.lowerBound * width)
    }

    /// The same memory under another shape.
    public func reshaped(_ shape: Int...) -> Tensor {
        precondition(shape.reduce(1, *) == count, "\(self.shape) is not \(shape)")
        return Tensor(shape: shape, floats: floats)
    }
}

/// Integers beside the activations: expert ids, selected rows, positions.
public struct IntTensor {
    public let shape: [Int]
    public let ints: UnsafeMutablePointer<Int32>

    public var count: Int { shape.reduce(1, *) }
    public var width: Int { shape.dropFirst().reduce(1, *) }

    public init(shape: [Int], ints: UnsafeMutablePointer<Int32>) {
        self.shape = shape
        self.ints = ints
    }

    public subscript(range: Range<Int>) -> IntTensor {
        IntTensor(shape: [range.count] + shape.dropFirst(), ints: ints + range.lowerBound * width)
    }
}

/// Scratch memory for the tensors of one forward pass: taken in order, given back all at once.
///
/// Memory grows to what the largest batch needs and is kept for the next one.
public final class Arena {
    private struct Slab {
        let buffer: Buffer
        var used = 0
    }
    private var slabs: [Slab] = []
    private var spare: Buffer?
    private static let alignment = 64

    public struct Mark {
        let slabs: Int
        let used: Int
    }

    private let memory: any Memory
    private let smallestSlab: Int

    public init(memory: any Memory = CPUMemory.shared, smallestSlab: Int = 1 << 20) {
        self.memory = memory
        self.smallestSlab = smallestSlab
    }

    public var byteCount: Int { slabs.reduce(spare?.byteCount ?? 0) { $0 + $1.buffer.byteCount } }

    /// What is taken from here on is free again after `release(to:)`.
    public func mark() -> Mark { Mark(slabs: slabs.count, used: slabs.last?.used ?? 0) }

    public func release(to mark: Mark) {
        while slabs.count > mark.slabs { keepSpare(slabs.removeLast().buffer) }
        if mark.slabs > 0 { slabs[mark.slabs - 1].used = mark.used }
    }

    /// The largest slab that was given back serves the next one that is needed.
    private func keepSpare(_ buffer: Buffer) {
        if buffer.byteCount > spare?.byteCount ?? 0 { spare = buffer }
    }

    public func tensor(_ shape: Int...) throws -> Tensor {
        let count = shape.reduce(1, *)
        return Tensor(shape: shape, floats: try take(count * 4).bindMemory(to: Float.self, capacity: count))
    }

    public func intTensor(_ shape: Int...) throws -> IntTensor {
        let count = shape.reduce(1, *)
        return IntTensor(shape: shape, ints: try take(count * 4).bindMemory(to: Int32.self, capacity: count))
    }

    public func bytes(_ count: Int) throws -> UnsafeMutablePointer<UInt8> {
        try take(count).bindMemory(to: UInt8.self, capacity: count)
    }

    private func take(_ byteCount: Int) throws -> UnsafeMutableRawPointer {
        let wanted = (byteCount + Self.alignment - 1) / Self.alignment * Self.alignment
        if let top = slabs.last, top.used + wanted + Self.alignment <= top.buffer.byteCount {
            slabs[slabs.count - 1].used += wanted
            return address(in: top.buffer, at: top.used)
        }
        let size = max(wanted + Self.alignment, 2 * (slabs.last?.buffer.byteCount ?? 0), smallestSlab)
        var buffer = spare
        if buffer == nil || buffer!.byteCount < wanted + Self.alignment {
            buffer = try Buffer(byteCount: size, in: memory)
        } else {
            spare = nil
        }
        slabs.append(Slab(buffer: buffer!, used: wanted))
        return address(in: buffer!, at: 0)
    }

    private func address(in buffer: Buffer, at offset: Int) -> UnsafeMutableRawPointer {
        let base = UInt(bitPattern: buffer.contents)
        let aligned = (base + UInt(Self.alignment) - 1) / UInt(Self.alignment) * UInt(Self.alignment)
        return buffer.contents + Int(aligned - base) + offset
    }
}
