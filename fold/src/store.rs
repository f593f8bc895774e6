//! Entries in memory: the store of replays and tests, which the fold asks without Python.

use crate::fold::{prefix_of, Shelf, Stored, StoredEntry, StoredKey};
use indexmap::IndexMap;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use std::convert::Infallible;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Entries, and their places in order of their keys as long as no key comes or goes.
#[derive(Default)]
pub struct Entries {
    entries: IndexMap<StoredKey, Box<[u8]>, ahash::RandomState>,
    sorted: Option<Arc<[usize]>>,
}

impl Entries {
    /// Puts an entry, or deletes it where there is no value.
    pub fn set(&mut self, key: &[u8], value: Option<&[u8]>) {
        let is_known = match (self.entries.get_mut(key), value) {
            (Some(known), Some(value)) => {
                *known = value.into();
                true
            }
            (None, Some(value)) => {
                self.entries.insert(key.into(), value.into());
                false
            }
            (Some(_), None) => {
                self.entries.swap_remove(key);
                false
            }
            (None, None) => true,
        };
        if !is_known {
            self.sorted = None;
        }
    }

    fn key(&self, place: usize) -> &[u8] {
        self.entries.get_index(place).expect("a place of this map").0
    }

    fn sorted(&mut self) -> Arc<[usize]> {
        if let Some(sorted) = &self.sorted {
            return sorted.clone();
        }
        let mut places: Vec<usize> = (0..self.entries.len()).collect();
        places.sort_by_cached_key(|place| prefix_of(self.key(*place)));
        places.sort_by(|one, other| self.key(*one).cmp(self.key(*other)));
        self.sorted.insert(places.into()).clone()
    }

    /// Returns the places of the entries whose key begins with `prefix`, in order, and where in
    /// the order they begin and end.
    fn with_prefix(&mut self, prefix: &[u8]) -> (Arc<[usize]>, usize, usize) {
        let sorted = self.sorted();
        let begin = sorted.partition_point(|place| self.key(*place) < prefix);
        let count = sorted[begin..].partition_point(|place| self.key(*place).starts_with(prefix));
        (sorted, begin, begin + count)
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
    type Error = Infallible;

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.reading().entries.get(key).map(|value| value.to_vec()))
    }

    fn get_many(&self, keys: &[&[u8]]) -> Result<Stored, Infallible> {
        let known = self.reading();
        let value = |key: &&[u8]| known.entries.get(*key).map(|value| value.to_vec());
        Ok(keys.iter().map(value).collect())
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<StoredEntry>, Infallible> {
        let mut known = self.writing();
        let (sorted, begin, end) = known.with_prefix(prefix);
        let entry = |place: &usize| {
            let (key, value) = known.entries.get_index(*place).expect("a place of this map");
            (key.to_vec(), value.to_vec())
        };
        Ok(sorted[begin..end].iter().map(entry).collect())
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
        bytes(py, self.reading().entries.get(key).map(|value| &**value))
    }

    /// Returns the value of each key, or None.
    #[pyo3(name = "get_many")]
    fn get_all<'py>(
        &self,
        py: Python<'py>,
        keys: Vec<Bound<'py, PyBytes>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let known = self.reading();
        let value = |key: &Bound<'py, PyBytes>| known.entries.get(key.as_bytes());
        PyList::new(py, keys.iter().map(|key| bytes(py, value(key).map(|value| &**value))))
    }

    /// Returns an iterator of the entries whose key begins with `prefix`, in order of their keys.
    ///
    /// No key may come or go meanwhile.
    #[pyo3(name = "scan", signature = (prefix=None))]
    fn iterate(this: Py<MemoryStore>, prefix: Option<&[u8]>) -> Scan {
        let (sorted, next, end) = this.get().writing().with_prefix(prefix.unwrap_or_default());
        Scan { store: this, sorted, next, end }
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
    sorted: Arc<[usize]>,
    next: usize,
    end: usize,
}

type PyEntry<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>);

#[pymethods]
impl Scan {
    fn __iter__(this: Py<Scan>) -> Py<Scan> {
        this
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> PyResult<Option<PyEntry<'py>>> {
        if self.next == self.end {
            return Ok(None);
        }
        let known = self.store.get().reading();
        if !known.sorted.as_ref().is_some_and(|sorted| Arc::ptr_eq(sorted, &self.sorted)) {
            return Err(PyRuntimeError::new_err("a key came or went during a scan"));
        }
        let place = self.sorted[self.next];
        self.next += 1;
        let (key, value) = known.entries.get_index(place).expect("a place of this map");
        Ok(Some((PyBytes::new(py, key), PyBytes::new(py, value))))
    }
}
