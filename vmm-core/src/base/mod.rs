//! What everything else stands on: guest memory, the saved-state contract, and the threads that run devices.

mod explain;
mod lock;
mod memory;
mod sparse;
mod state;
mod worker;

pub use explain::explain;
pub use lock::take_lock;
pub use memory::{
    Fate, GuestMemory, HIGH_RAM_START, LOW_RAM_MAX, Layer, MemoryError, OldPages, PageRun, PageTable, Progress,
    RamCopy, RamRegion, SharePass,
};
pub use sparse::{copy_sparse, data_at};
pub use state::{Bytes, Component, SavedState, Section, StateError};
pub use vm_memory::{ByteValued, GuestAddress, VolatileSlice};
pub use worker::{Executor, InlineExecutor, Task, TaskId, WorkerThread};
