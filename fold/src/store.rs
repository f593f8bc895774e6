//! Entries in memory: the store of replays and tests, which the fold asks without Python.

use crate::fold::{sorted_places, Shelf, Stored, StoredEntry};
use hashbrown::hash_table::Entry as TableEntry;
use hashbrown::HashTable;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How much memory is asked for at a time, in bytes.
const SEGMENT: usize = 1 << 20;

/// Before an entry are the lengths of its key and its value.
const HEAD: usize = 8;

/// Where an entry is: its segment, and where in that it begins.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    segment: u32,
    begin: u32,
}

/// A place, and the hash of the key there, to find and to move it without looking.
struct Slot {
    hash: u32,
    place: Place,
}

impl Slot {
    /// Returns the hash as a table wants it: it looks at the first bits and at the last.
    fn spread(hash: u32) -> u64 {
        u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn is_of(&self, segments: &[Segment], hash: u32, key: &[u8]) -> bool {
        self.hash == hash && entry_at(segments, self.place).0 == key
    }
}

/// Returns key and value of the entry at a place.
fn entry_at(segments: &[Segment], place: Place) -> (&[u8], &[u8]) {
    segments[place.segment as usize].entry(place.begin as usize)
}

/// Entries one behind the other. `dead` bytes of them are of entries that are no more.
#[derive(Default)]
struct Segment {
    bytes: Vec<u8>,
    dead: usize,
}

impl Segment {
    /// Returns key and value of the entry that begins somewhere.
    fn entry(&self, begin: usize) -> (&[u8], &[u8]) {
        let (head, rest) = self.bytes[begin..].split_at(HEAD);
        let length = |at: usize| {
            u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes")) as usize
        };
        let (key, rest) = rest.split_at(length(0));
        (key, &rest[..length(4)])
    }
}

fn size_of((key, value): (&[u8], &[u8])) -> usize {
    HEAD + key.len() + value.len()
}

/// Returns a number that Kafka's limit of a record keeps small.
fn small(number: usize) -> u32 {
    u32::try_from(number).expect("entries are no larger than records")
}

/// Entries in memory that is only written to at its end, so that a million of them are not two
/// million pieces. What was replaced stays until half of its segment is dead; then the rest of that
/// is written again.
#[derive(Default)]
struct Part {
    segments: Vec<Segment>,
    current: usize,     // the segment that is written to
    unused: Vec<usize>, // those that are empty
    table: HashTable<Slot>,
    hasher: ahash::RandomState,
    sorted: Option<Arc<[Place]>>, // by key, as long as nothing changes
}

impl Part {
    fn hash(&self, key: &[u8]) -> u32 {
        self.hasher.hash_one(key) as u32
    }

    fn entry(&self, place: Place) -> (&[u8], &[u8]) {
        entry_at(&self.segments, place)
    }

    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let hash = self.hash(key);
        let is_it = |slot: &Slot| slot.is_of(&self.segments, hash, key);
        let slot = self.table.find(Slot::spread(hash), is_it)?;
        Some(self.entry(slot.place).1)
    }

    fn set(&mut self, key: &[u8], value: Option<&[u8]>) {
        self.sorted = None;
        let (hash, before) = (self.hash(key), self.current);
        let new = value.map(|value| self.append(key, value));
        let is_it = |slot: &Slot| slot.is_of(&self.segments, hash, key);
        let known = self.table.entry(Slot::spread(hash), is_it, |slot| Slot::spread(slot.hash));
        let replaced = match (known, new) {
            (TableEntry::Occupied(mut known), Some(place)) => {
                Some(std::mem::replace(&mut known.get_mut().place, place))
            }
            (TableEntry::Occupied(known), None) => Some(known.remove().0.place),
            (TableEntry::Vacant(free), Some(place)) => {
                free.insert(Slot { hash, place });
                None
            }
            (TableEntry::Vacant(_), None) => None,
        };
        if let Some(place) = replaced {
            let size = size_of(self.entry(place));
            let number = place.segment as usize;
            self.segments[number].dead += size;
            self.clear_if_mostly_dead(number);
        }
        self.clear_if_mostly_dead(before);
    }

    /// Writes an entry behind the last one.
    fn append(&mut self, key: &[u8], value: &[u8]) -> Place {
        let size = size_of((key, value));
        let has_room = |segment: &Segment| segment.bytes.len() + size <= segment.bytes.capacity();
        if !self.segments.get(self.current).is_some_and(has_room) {
            self.current = self.unused.pop().unwrap_or_else(|| {
                self.segments.push(Segment::default());
                self.segments.len() - 1
            });
            self.segments[self.current].bytes.reserve_exact(SEGMENT.max(size));
        }
        let bytes = &mut self.segments[self.current].bytes;
        let place = Place { segment: small(self.current), begin: small(bytes.len()) };
        bytes.extend_from_slice(&small(key.len()).to_le_bytes());
        bytes.extend_from_slice(&small(value.len()).to_le_bytes());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
        place
    }

    fn clear_if_mostly_dead(&mut self, number: usize) {
        let Some(Segment { bytes, dead }) = self.segments.get(number) else { return };
        if number == self.current || 2 * dead <= bytes.len() {
            return;
        }
        let segment = std::mem::take(&mut self.segments[number]);
        let mut begin = 0;
        while begin < segment.bytes.len() {
            let (key, value) = segment.entry(begin);
            let old = Place { segment: small(number), begin: small(begin) };
            begin += size_of((key, value));
            let spread = Slot::spread(self.hash(key));
            if self.table.find(spread, |slot| slot.place == old).is_none() {
                continue;
            }
            let new = self.append(key, value);
            let slot = self.table.find_mut(spread, |slot| slot.place == old);
            slot.expect("it was just there").place = new;
        }
        self.unused.push(number); // and not before: what is moved must not come here
    }

    /// Returns the places of the entries whose key begins with `prefix`.
    fn with_prefix(&mut self, prefix: &[u8]) -> Places {
        let sorted = self.sorted.take().unwrap_or_else(|| {
            let places: Vec<Place> = self.table.iter().map(|slot| slot.place).collect();
            let sorted = sorted_places(places.len(), |number| self.entry(places[number]).0);
            sorted.into_iter().map(|number| places[number]).collect()
        });
        self.sorted = Some(sorted.clone());
        let begin = sorted.partition_point(|place| self.entry(*place).0 < prefix);
        let begins = |place: &Place| self.entry(*place).0.starts_with(prefix);
        let end = begin + sorted[begin..].partition_point(begins);
        Places { sorted, next: begin, end }
    }
}

/// Places of entries in order of their keys, from `next` to before `end`.
#[derive(Default)]
struct Places {
    sorted: Arc<[Place]>,
    next: usize,
    end: usize,
}

/// Entries in two parts: those whose keys begin with a zero byte, totals, are asked for without
/// the others, which are many more.
#[derive(Default)]
pub struct Entries([Part; 2]);

fn part_of(key: &[u8]) -> usize {
    usize::from(key.first() != Some(&0))
}

impl Entries {
    /// Puts an entry, or deletes it where there is no value.
    pub fn set(&mut self, key: &[u8], value: Option<&[u8]>) {
        self.0[part_of(key)].set(key, value);
    }

    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.0[part_of(key)].get(key)
    }

    /// Returns, for each part in order, the places of the entries whose key begins with `prefix`.
    fn with_prefix(&mut self, prefix: &[u8]) -> [Places; 2] {
        let mut found = [Places::default(), Places::default()];
        for (part, places) in found.iter_mut().enumerate() {
            if prefix.is_empty() || part == part_of(prefix) {
                *places = self.0[part].with_prefix(prefix);
            }
        }
        found
    }
}

/// A store that lives as long as the process.
#[pyclass(frozen, module = "ledger._fold")]
#[derive(Default)]
pub struct MemoryStore {
    entries: RwLock<Entries>,
}

impl MemoryStore {
    fn reading(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().expect("nothing fails while it is held")
    }

    pub fn writing(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().expect("nothing fails while it is held")
    }
}

impl Shelf for MemoryStore {
    type Error = PyErr;

    fn get(&self, key: &[u8]) -> PyResult<Option<Vec<u8>>> {
        Ok(self.reading().get(key).map(<[u8]>::to_vec))
    }

    fn get_many(&self, keys: &[&[u8]]) -> PyResult<Stored> {
        let known = self.reading();
        Ok(keys.iter().map(|key| known.get(key).map(<[u8]>::to_vec)).collect())
    }

    fn scan(&self, prefix: &[u8]) -> PyResult<Vec<StoredEntry>> {
        let mut known = self.writing();
        let mut found = Vec::new();
        for (part, places) in known.with_prefix(prefix).iter().enumerate() {
            for place in &places.sorted[places.next..places.end] {
                let (key, value) = known.0[part].entry(*place);
                found.push((key.to_vec(), value.to_vec()));
            }
        }
        Ok(found)
    }
}

fn bytes<'py>(py: Python<'py>, value: Option<&[u8]>) -> Option<Bound<'py, PyBytes>> {
    value.map(|value| PyBytes::new(py, value))
}

#[pymethods]
impl MemoryStore {
    #[new]
    #[pyo3(signature = (entries=None))]
    fn new(entries: Option<&Bound<'_, PyDict>>) -> PyResult<MemoryStore> {
        let store = MemoryStore::default();
        if let Some(entries) = entries {
            store.write(entries)?;
        }
        Ok(store)
    }

    /// Returns the value of a key, or None.
    #[pyo3(name = "get")]
    fn get_one<'py>(&self, py: Python<'py>, key: &[u8]) -> Option<Bound<'py, PyBytes>> {
        bytes(py, self.reading().get(key))
    }

    /// Returns the value of each key, or None.
    #[pyo3(name = "get_many")]
    fn get_all<'py>(
        &self,
        py: Python<'py>,
        keys: Vec<Bound<'py, PyBytes>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let known = self.reading();
        PyList::new(py, keys.iter().map(|key| bytes(py, known.get(key.as_bytes()))))
    }

    /// Returns an iterator of the entries whose key begins with `prefix`, in order of their keys.
    ///
    /// Nothing may be written meanwhile.
    #[pyo3(name = "scan", signature = (prefix=None))]
    fn iterate(this: Py<MemoryStore>, prefix: Option<&[u8]>) -> Scan {
        let left = this.get().writing().with_prefix(prefix.unwrap_or_default());
        Scan { store: this, left }
    }

    /// Puts every entry of `changes.items()`, deletes those whose value is None.
    fn write(&self, changes: &Bound<'_, PyAny>) -> PyResult<()> {
        type Entry<'py> = (Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>);
        let items = changes.call_method0("items")?.try_iter()?;
        let entries: Vec<Entry> = items.map(|entry| entry?.extract()).collect::<PyResult<_>>()?;
        let mut known = self.writing();
        for (key, value) in &entries {
            known.set(key.as_bytes(), value.as_ref().map(|value| value.as_bytes()));
        }
        Ok(())
    }
}

/// A way through the entries of a `MemoryStore`.
#[pyclass]
struct Scan {
    store: Py<MemoryStore>,
    left: [Places; 2],
}

type PyEntry<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>);

#[pymethods]
impl Scan {
    fn __iter__(this: Py<Scan>) -> Py<Scan> {
        this
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> PyResult<Option<PyEntry<'py>>> {
        let known = self.store.get().reading();
        for (part, places) in known.0.iter().zip(&mut self.left) {
            if places.next == places.end {
                continue;
            }
            if !part.sorted.as_ref().is_some_and(|sorted| Arc::ptr_eq(sorted, &places.sorted)) {
                return Err(PyRuntimeError::new_err("something was written during a scan"));
            }
            let (key, value) = part.entry(places.sorted[places.next]);
            places.next += 1;
            return Ok(Some((PyBytes::new(py, key), PyBytes::new(py, value))));
        }
        Ok(None)
    }
}
