#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// What we call of libcuda, found when it is first needed: nothing of CUDA is there to build or link with.
struct CUDADriver {
    typealias Status = Int32
    typealias Address = UInt64
    typealias Handle = OpaquePointer?

    /// CUDA_KERNEL_NODE_PARAMS_v2 of cuda.h.
    struct KernelNode {
        var function: Handle
        var gridX: UInt32, gridY: UInt32, gridZ: UInt32
        var blockX: UInt32, blockY: UInt32 = 1, blockZ: UInt32 = 1
        var sharedByteCount: UInt32 = 0
        var parameters: UnsafeMutablePointer<UnsafeMutableRawPointer?>?
        var extra: UnsafeMutablePointer<UnsafeMutableRawPointer?>?
        var kernel: Handle = nil
        var context: Handle = nil
    }

    /// CUgraphEdgeData: here always that of a kernel that may be launched before the one it waits for has ended.
    struct GraphEdge {
        var fromPort: UInt8 = 1  // CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC
        var toPort: UInt8 = 0
        var type: UInt8 = 1  // CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC
        var reserved: (UInt8, UInt8, UInt8, UInt8, UInt8) = (0, 0, 0, 0, 0)
    }

    let initialise: @convention(c) (UInt32) -> Status
    let errorString: @convention(c) (Status, UnsafeMutablePointer<UnsafePointer<CChar>?>) -> Status
    let deviceGet: @convention(c) (UnsafeMutablePointer<Int32>, Int32) -> Status
    let deviceName: @convention(c) (UnsafeMutablePointer<CChar>, Int32, Int32) -> Status
    let deviceAttribute: @convention(c) (UnsafeMutablePointer<Int32>, Int32, Int32) -> Status
    let contextRetain: @convention(c) (UnsafeMutablePointer<Handle>, Int32) -> Status
    let contextSet: @convention(c) (Handle) -> Status
    let memoryInfo: @convention(c) (UnsafeMutablePointer<Int>, UnsafeMutablePointer<Int>) -> Status
    let allocate: @convention(c) (UnsafeMutablePointer<Address>, Int) -> Status
    let free: @convention(c) (Address) -> Status
    let allocateHost: @convention(c) (UnsafeMutablePointer<UnsafeMutableRawPointer?>, Int, UInt32) -> Status
    let freeHost: @convention(c) (UnsafeMutableRawPointer) -> Status
    let copyToDevice: @convention(c) (Address, UnsafeRawPointer, Int, Handle) -> Status
    let copyToHost: @convention(c) (UnsafeMutableRawPointer, Address, Int, Handle) -> Status
    let copyOnDevice: @convention(c) (Address, Address, Int, Handle) -> Status
    let fill: @convention(c) (Address, UInt8, Int, Handle) -> Status
    let moduleLoad: @convention(c) (UnsafeMutablePointer<Handle>, UnsafeRawPointer) -> Status
    let moduleUnload: @convention(c) (Handle) -> Status
    let moduleFunction: @convention(c) (UnsafeMutablePointer<Handle>, Handle, UnsafePointer<CChar>) -> Status
    let functionAttribute: @convention(c) (Handle, Int32, Int32) -> Status
    let streamCreate: @convention(c) (UnsafeMutablePointer<Handle>, UInt32) -> Status
    let streamDestroy: @convention(c) (Handle) -> Status
    let streamWait: @convention(c) (Handle) -> Status
    let launch: @convention(c) (
        Handle, UInt32, UInt32, UInt32, UInt32, UInt32, UInt32, UInt32, Handle,
        UnsafeMutablePointer<UnsafeMutableRawPointer?>, UnsafeMutableRawPointer?
    ) -> Status
    let graphCreate: @convention(c) (UnsafeMutablePointer<Handle>, UInt32) -> Status
    let graphAddKernel: @convention(c) (
        UnsafeMutablePointer<Handle>, Handle, UnsafePointer<Handle>?, Int, UnsafeRawPointer
    ) -> Status
    /// nil: an older driver.
    let graphAddEdges: (@convention(c) (
        Handle, UnsafePointer<Handle>, UnsafePointer<Handle>, UnsafeRawPointer, Int
    ) -> Status)?
    let graphInstantiate: @convention(c) (UnsafeMutablePointer<Handle>, Handle, UInt64) -> Status
    let graphLaunch: @convention(c) (Handle, Handle) -> Status
    let graphDestroy: @convention(c) (Handle) -> Status
    let eventCreate: @convention(c) (UnsafeMutablePointer<Handle>, UInt32) -> Status
    let eventRecord: @convention(c) (Handle, Handle) -> Status
    let eventTime: @convention(c) (UnsafeMutablePointer<Float>, Handle, Handle) -> Status
    let graphExecDestroy: @convention(c) (Handle) -> Status

    /// - Throws: `ComputeError.device` when there is no NVIDIA driver.
    init() throws {
        guard let library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL) else {
            throw ComputeError.device("backend 'cuda': no NVIDIA driver is installed (libcuda.so.1 was not found)")
        }
        func find<F>(_ name: String) throws -> F {
            guard let symbol = dlsym(library, name) else {
                throw ComputeError.device("backend 'cuda': the NVIDIA driver is too old (it has no \(name))")
            }
            return unsafeBitCast(symbol, to: F.self)
        }
        initialise = try find("cuInit")
        errorString = try find("cuGetErrorString")
        deviceGet = try find("cuDeviceGet")
        deviceName = try find("cuDeviceGetName")
        deviceAttribute = try find("cuDeviceGetAttribute")
        contextRetain = try find("cuDevicePrimaryCtxRetain")
        contextSet = try find("cuCtxSetCurrent")
        memoryInfo = try find("cuMemGetInfo_v2")
        allocate = try find("cuMemAlloc_v2")
        free = try find("cuMemFree_v2")
        allocateHost = try find("cuMemHostAlloc")
        freeHost = try find("cuMemFreeHost")
        copyToDevice = try find("cuMemcpyHtoDAsync_v2")
        copyToHost = try find("cuMemcpyDtoHAsync_v2")
        copyOnDevice = try find("cuMemcpyDtoDAsync_v2")
        fill = try find("cuMemsetD8Async")
        moduleLoad = try find("cuModuleLoadData")
        moduleUnload = try find("cuModuleUnload")
        moduleFunction = try find("cuModuleGetFunction")
        functionAttribute = try find("cuFuncSetAttribute")
        streamCreate = try find("cuStreamCreate")
        streamDestroy = try find("cuStreamDestroy_v2")
        streamWait = try find("cuStreamSynchronize")
        launch = try find("cuLaunchKernel")
        graphCreate = try find("cuGraphCreate")
        graphAddKernel = try find("cuGraphAddKernelNode_v2")
        graphAddEdges = try? find("cuGraphAddDependencies_v2")
        eventCreate = try find("cuEventCreate")
        eventRecord = try find("cuEventRecord")
        eventTime = try find("cuEventElapsedTime")
        graphInstantiate = try find("cuGraphInstantiateWithFlags")
        graphLaunch = try find("cuGraphLaunch")
        graphDestroy = try find("cuGraphDestroy")
        graphExecDestroy = try find("cuGraphExecDestroy")
    }

    func check(_ status: Status, _ what: @autoclosure () -> String) throws {
        guard status != 0 else { return }
        var text: UnsafePointer<CChar>?
        _ = errorString(status, &text)
        throw ComputeError.device(
            "backend 'cuda': \(what()): \(text.map { String(cString: $0) } ?? "error") (CUDA error \(status))")
    }
}
