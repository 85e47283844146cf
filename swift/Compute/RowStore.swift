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

/// Memory of some rows. Several stores may hold one page; each reads only the rows it counts.
final class RowPage {
    let buffer: Buffer
    /// Rows written by whichever store came furthest. A store whose rows end here may append in
    /// place even when others share the page: they never look that far.
    var filled = 0

    init(byteCount: Int, in memory: any Memory) throws { buffer = try Buffer(byteCount: byteCount, in: memory) }
}

/// A growing list of rows in pages that copies share.
///
/// Copying the struct is O(1). Rows are only ever appended, so a copy keeps its rows for ever; the
/// page it ends in is copied only when two stores append behind the same row.
public struct RowStore {
    public let format: RowFormat
    public let rowsPerPage: Int
    public let memory: any Memory
    public private(set) var count = 0
    private var pages: [RowPage] = []

    public init(format: RowFormat, rowsPerPage: Int, memory: any Memory = CPUMemory.shared) {
        self.format = format
        self.rowsPerPage = rowsPerPage
        self.memory = memory
    }

    /// Rows that fit the pages there are.
    public var capacity: Int { pages.count * rowsPerPage }
    public var byteCount: Int { pages.count * rowsPerPage * format.byteCount }
    var pageAddresses: [UnsafePointer<UInt8>?] {
        pages.map { UnsafePointer($0.buffer.contents.assumingMemoryBound(to: UInt8.self)) }
    }

    var pageCount: Int { pages.count }
    func forEachPageAddress(_ body: (UnsafeRawPointer) -> Void) {
        for page in pages { body(UnsafeRawPointer(page.buffer.contents)) }
    }

    /// Identity and size of every page: what is shared can then be counted once.
    public func forEachPage(_ body: (ObjectIdentifier, Int) -> Void) {
        for page in pages { body(ObjectIdentifier(page), page.buffer.byteCount) }
    }

    /// Makes room for `rows` more, so that `append` cannot fail.
    public mutating func reserve(_ rows: Int) throws {
        guard rows > 0 else { return }
        // Also pages that were reserved before a copy was made and are still empty here.
        for index in count / rowsPerPage..<max(pages.count, count / rowsPerPage) {
            let used = index == count / rowsPerPage ? count % rowsPerPage : 0
            if pages[index].filled == used { continue }
            if isKnownUniquelyReferenced(&pages[index]) {
                pages[index].filled = used
            } else {
                let page = try newPage()
                memory.copy(from: pages[index].buffer.contents, to: page.buffer.contents,
                            byteCount: used * format.byteCount)
                page.filled = used
                pages[index] = page
            }
        }
        let needed = (count + rows + rowsPerPage - 1) / rowsPerPage
        while pages.count < needed { pages.append(try newPage()) }
    }

    private func newPage() throws -> RowPage { try RowPage(byteCount: rowsPerPage * format.byteCount, in: memory) }

    /// Appends encoded rows of the same memory. `reserve` was called for them.
    public mutating func append(_ rows: UnsafePointer<UInt8>, count added: Int) {
        let memory = memory
        var taken = 0
        takeSlots(added) { address, byteCount in
            memory.copy(from: rows + taken, to: address, byteCount: byteCount)
            taken += byteCount
        }
    }

    /// Appends encoded rows of the CPU's memory. `reserve` was called for them.
    public mutating func append(host rows: UnsafeRawPointer, count added: Int) {
        let memory = memory
        var taken = 0
        takeSlots(added) { address, byteCount in
            memory.write(rows + taken, to: address, byteCount: byteCount)
            taken += byteCount
        }
    }

    /// Counts `added` rows that a kernel wrote, or will write, into the pages. `reserve` was called for them.
    public mutating func extend(by added: Int) { takeSlots(added) { _, _ in } }

    /// Counts `added` rows and hands over where they lie, page by page.
    private mutating func takeSlots(_ added: Int, _ body: (UnsafeMutableRawPointer, Int) -> Void) {
        let end = count + added
        while count < end {
            let slot = count % rowsPerPage, page = pages[count / rowsPerPage]
            let n = min(end - count, rowsPerPage - slot)
            body(page.buffer.contents + slot * format.byteCount, n * format.byteCount)
            page.filled = slot + n
            count += n
        }
    }

    /// Forgets all rows from `count` on, and the pages that only held such rows.
    public mutating func truncate(to count: Int) {
        precondition(count <= self.count)
        self.count = count
        pages.removeLast(pages.count - (count + rowsPerPage - 1) / rowsPerPage)
    }

    public func row(_ index: Int) -> UnsafeRawPointer {
        precondition(index < count)
        return UnsafeRawPointer(pages[index / rowsPerPage].buffer.contents + index % rowsPerPage * format.byteCount)
    }

    /// Copies rows `range` into the CPU's memory at `out`, one behind another.
    public func read(_ range: Range<Int>, into out: UnsafeMutableRawPointer) {
        precondition(range.upperBound <= count)
        let size = format.byteCount
        var index = range.lowerBound, out = out
        while index < range.upperBound {
            let slot = index % rowsPerPage
            let n = min(range.upperBound - index, rowsPerPage - slot)
            memory.read(pages[index / rowsPerPage].buffer.contents + slot * size, into: out, byteCount: n * size)
            out += n * size
            index += n
        }
    }
}
