//! Buffers that operations own: written exclusively, then shared cheaply, then given back to their pool.
//!
//! Every byte of a buffer is initialised from the start. A [`Buf`] has one owner; [`Buf::freeze`] turns it into a
//! [`Shared`], whose clones and slices keep the memory until the last is gone. Memory of a pool is never freed while a
//! buffer of it exists.

use std::{
    fmt,
    num::NonZeroUsize,
    ops::{Deref, DerefMut, Range},
    ptr::NonNull,
    sync::Arc,
};

use crossbeam::queue::ArrayQueue;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Immutable bytes with cheap clones and slices; memory of a pool, or of the heap (`Shared::from(vec)`).
pub use bytes::Bytes as Shared;

/// A fixed number of buffers of one size, in one piece of memory that a ring can register.
#[derive(Clone)]
pub struct BufPool(Arc<PoolInner>);

struct PoolInner {
    start: NonNull<u8>,
    buf_bytes: usize,
    count: usize,
    free: ArrayQueue<u32>,
}

// SAFETY: the region is plain memory; each part of it belongs to the one `Buf` (or its `Shared` clones, read-only) that
// holds its index, and indexes move through a queue that is itself `Sync`.
unsafe impl Send for PoolInner {}
// SAFETY: as above; `PoolInner` gives no access to the bytes through a shared reference.
unsafe impl Sync for PoolInner {}

impl BufPool {
    /// `count` buffers of `buf_bytes` each (rounded up to whole pages).
    ///
    /// # Errors
    /// The kernel refused the memory, or the size is zero or overflows.
    pub fn new(count: usize, buf_bytes: usize) -> std::io::Result<Self> {
        let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
        let buf_bytes = buf_bytes.checked_next_multiple_of(4096).ok_or_else(invalid)?;
        let len = buf_bytes.checked_mul(count).and_then(NonZeroUsize::new).ok_or_else(invalid)?;
        let last = u32::try_from(count).map_err(|_| invalid())?;
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice aliases nothing.
        let start =
            unsafe { mmap_anonymous(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)? };
        let free = ArrayQueue::new(count);
        for index in 0..last {
            // The queue has room for all of them.
            let _ = free.push(index);
        }
        Ok(Self(Arc::new(PoolInner { start: start.cast(), buf_bytes, count, free })))
    }

    /// An empty buffer, or `None` when all are in use.
    #[must_use]
    pub fn take(&self) -> Option<Buf> {
        let index = self.0.free.pop()?;
        // SAFETY: `index < count`, so the offset stays inside the mapping.
        let start = unsafe { self.0.start.add(index as usize * self.0.buf_bytes) };
        let home = Home::Pool { pool: self.0.clone(), index };
        Some(Buf { start, capacity: self.0.buf_bytes, len: 0, home })
    }

    /// An empty buffer, from the heap when all are in use.
    #[must_use]
    pub fn take_or_heap(&self) -> Buf {
        self.take().unwrap_or_else(|| Buf::heap(self.0.buf_bytes))
    }

    /// The size of one buffer, in bytes.
    #[must_use]
    pub fn buf_bytes(&self) -> usize {
        self.0.buf_bytes
    }

    /// How many buffers are free now.
    #[must_use]
    pub fn free_count(&self) -> usize {
        self.0.free.len()
    }

    /// The addresses of the whole region, for registration.
    pub(super) fn region(&self) -> Range<usize> {
        let start = self.0.start.as_ptr() as usize;
        start..start + self.0.buf_bytes * self.0.count
    }
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufPool({} of {} x {} free)", self.free_count(), self.0.count, self.0.buf_bytes)
    }
}

impl Drop for PoolInner {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; no `Buf` or `Shared` is left, each holds an `Arc` of this.
        let _ = unsafe { munmap(self.start.cast(), self.buf_bytes * self.count) };
    }
}

/// One buffer with one owner: `len` bytes that mean something, and spare capacity after them.
/// Dereferences to the `len` bytes.
pub struct Buf {
    start: NonNull<u8>,
    capacity: usize,
    len: usize,
    home: Home,
}

enum Home {
    Pool { pool: Arc<PoolInner>, index: u32 },
    Heap,
}

// SAFETY: a `Buf` is the only owner of its bytes.
unsafe impl Send for Buf {}
// SAFETY: `&Buf` gives only `&[u8]`.
unsafe impl Sync for Buf {}

impl Buf {
    /// An empty buffer of its own, of `capacity` zeroed bytes.
    #[must_use]
    pub fn heap(capacity: usize) -> Self {
        // The type is said: by itself the vector was one of `i32`, of four times the size that `drop` gave back.
        let bytes: Box<[u8]> = vec![0_u8; capacity].into_boxed_slice();
        let start = NonNull::from(Box::leak(bytes)).cast();
        Self { start, capacity, len: 0, home: Home::Heap }
    }

    /// How many bytes fit in, those already there included.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many more bytes fit in.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.capacity - self.len
    }

    /// The bytes after the valid ones; what they hold is unspecified, but never uninitialised.
    pub fn spare_mut(&mut self) -> &mut [u8] {
        // SAFETY: `start..start+capacity` is initialised memory that only this `Buf` owns.
        let all = unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.capacity) };
        &mut all[self.len..]
    }

    /// Declares that so many bytes mean something.
    ///
    /// # Panics
    /// If `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "a buffer's length stays within its capacity");
        self.len = len;
    }

    /// Forgets the content.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends as much of `bytes` as fits in; how much that is.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.spare());
        self.spare_mut()[..count].copy_from_slice(&bytes[..count]);
        self.len += count;
        count
    }

    /// Removes the first `count` bytes, moving the rest to the front.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.len, "no more can be consumed than is there");
        let len = self.len;
        self.copy_within(count..len, 0);
        self.len -= count;
    }

    /// Makes the bytes immutable and cheaply shareable; a pool's buffer returns to it with the last clone.
    #[must_use]
    pub fn freeze(self) -> Shared {
        Shared::from_owner(self)
    }

    /// Where the kernel may write, and how much.
    pub(super) fn spare_raw(&mut self) -> (*mut u8, usize) {
        let spare = self.spare_mut();
        (spare.as_mut_ptr(), spare.len())
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity`, all initialised, and nobody else writes.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} of {} bytes)", self.len, self.capacity)
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        match &self.home {
            // The queue has room for every index of the pool.
            Home::Pool { pool, index } => drop(pool.free.push(*index)),
            Home::Heap => {
                let bytes = std::ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.capacity);
                // SAFETY: a box of as many bytes, leaked in `heap`, and dropped once.
                drop(unsafe { Box::from_raw(bytes) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_buffer_returns_with_its_last_clone() {
        let pool = BufPool::new(2, 100).unwrap();
        assert_eq!(pool.buf_bytes(), 4096);
        let mut first = pool.take().unwrap();
        let second = pool.take().unwrap();
        assert!(pool.take().is_none());
        assert_eq!(pool.take_or_heap().capacity(), 4096);
        assert_eq!(first.append(b"hello world"), 11);
        first.consume(6);
        let shared = first.freeze();
        let part = shared.slice(1..3);
        drop(shared);
        assert_eq!(pool.free_count(), 0);
        assert_eq!(&part[..], b"or");
        drop(part);
        assert_eq!(pool.free_count(), 1);
        drop(second);
        assert_eq!(pool.free_count(), 2);
    }

    #[test]
    fn a_buffer_outlives_its_pool_and_never_overflows() {
        let pool = BufPool::new(1, 4096).unwrap();
        let mut buf = pool.take().unwrap();
        drop(pool);
        assert_eq!(buf.append(&[7; 5000]), 4096);
        assert_eq!(buf.spare(), 0);
        assert!(buf.iter().all(|byte| *byte == 7));
        let mut heap = Buf::heap(3);
        assert_eq!(heap.append(b"abcd"), 3);
        assert_eq!(&heap.freeze()[..], b"abc");
    }

    #[test]
    fn impossible_sizes_are_errors() {
        assert!(BufPool::new(0, 4096).is_err());
        assert!(BufPool::new(2, usize::MAX).is_err());
        assert!(BufPool::new(usize::MAX, 4096).is_err());
    }
}
