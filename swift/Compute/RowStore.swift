import CKernels

/// How one row of attention memory is kept; the layouts are drawn in ckernels.h.
public struct RowFormat: Equatable, Sendable {
    public enum Kind: Int32, Sendable { case float32 = 0, fp8 = 1, fp4 = 2 }
    public let kind: Kind
    /// Values in a row, and how many at its end carry the rotary position.
    public let dim: Int
    public let rope: Int

    public init(_ kind: Kind, dim: Int, rope: Int) {
        self.kind = kind
        self.dim = dim
        self.rope = rope
    }

    public var byteCount: Int { kv_row_bytes(kind.rawValue, Int64(dim), Int64(rope)) }
}

/// A growing list of rows in pages that forks share: a page is copied when a second owner writes to it.
public struct RowStore {
    public let format: RowFormat
    public let rowsPerPage: Int
    public let memory: any Memory
    public private(set) var count = 0
    private var pages: [Buffer] = []

    public init(format: RowFormat, rowsPerPage: Int, memory: any Memory = CPUMemory.shared) {
        self.format = format
        self.rowsPerPage = rowsPerPage
        self.memory = memory
    }

    public var byteCount: Int { pages.count * rowsPerPage * format.byteCount }
    var pageAddresses: [UnsafePointer<UInt8>?] {
        pages.map { UnsafePointer($0.contents.assumingMemoryBound(to: UInt8.self)) }
    }

    /// Makes room for `rows` more, so that `append` cannot fail.
    public mutating func reserve(_ rows: Int) throws {
        guard rows > 0 else { return }
        let partial = count / rowsPerPage
        if count % rowsPerPage != 0, !isKnownUniquelyReferenced(&pages[partial]) {
            pages[partial] = try pages[partial].copy()
        }
        // A page beyond `count` may still be shared with a fork that kept its rows.
        let firstWhole = (count + rowsPerPage - 1) / rowsPerPage
        let needed = (count + rows + rowsPerPage - 1) / rowsPerPage
        for index in firstWhole..<max(needed, firstWhole) {
            if index == pages.count {
                pages.append(try Buffer(byteCount: rowsPerPage * format.byteCount, in: memory))
            } else if !isKnownUniquelyReferenced(&pages[index]) {
                pages[index] = try Buffer(byteCount: rowsPerPage * format.byteCount, in: memory)
            }
        }
    }

    /// Appends encoded rows. `reserve` was called for them.
    public mutating func append(_ rows: UnsafePointer<UInt8>, count added: Int) {
        let size = format.byteCount
        var taken = 0
        while taken < added {
            let slot = count % rowsPerPage
            let n = min(added - taken, rowsPerPage - slot)
            memory.copy(from: rows + taken * size, to: pages[count / rowsPerPage].contents + slot * size,
                        byteCount: n * size)
            taken += n
            count += n
        }
    }

    /// Counts `added` rows that a kernel wrote, or will write, into the pages. `reserve` was called for them.
    public mutating func extend(by added: Int) { count += added }

    /// Forgets all rows from `count` on, and the pages that only held such rows.
    public mutating func truncate(to count: Int) {
        precondition(count <= self.count)
        self.count = count
        pages.removeLast(pages.count - (count + rowsPerPage - 1) / rowsPerPage)
    }

    public func row(_ index: Int) -> UnsafeRawPointer {
        precondition(index < count)
        return UnsafeRawPointer(pages[index / rowsPerPage].contents + index % rowsPerPage * format.byteCount)
    }
}
