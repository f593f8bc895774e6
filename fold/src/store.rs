//! Entries in memory: the store of replays and tests, which the fold asks without Python.

use crate::fold::{sorted_places, Shelf, Stored, StoredEntry, StoredKey};
use indexmap::IndexMap;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Entries, and their places in order of their keys as long as no key comes or goes.
#[derive(Default)]
struct Part {
    entries: IndexMap<StoredKey, Box<[u8]>, ahash::RandomState>,
    sorted: Option<Arc<[usize]>>,
}

impl Part {
    fn set(&mut self, key: &[u8], value: Option<&[u8]>) {
        let count = self.entries.len();
        match value {
            Some(value) => {
                self.entries.insert(key.into(), value.into());
            }
            None => {
                self.entries.swap_remove(key);
            }
        }
        if self.entries.len() != count {
            self.sorted = None;
        }
    }

    fn entry(&self, place: usize) -> (&[u8], &[u8]) {
        let (key, value) = self.entries.get_index(place).expect("a place of this map");
        (key, value)
    }

    /// Returns the places of the entries whose key begins with `prefix`.
    fn with_prefix(&mut self, prefix: &[u8]) -> Places {
        let sorted = self.sorted.take().unwrap_or_else(|| {
            sorted_places(self.entries.len(), |place| self.entry(place).0).into()
        });
        self.sorted = Some(sorted.clone());
        let begin = sorted.partition_point(|place| self.entry(*place).0 < prefix);
        let begins = |place: &usize| self.entry(*place).0.starts_with(prefix);
        let end = begin + sorted[begin..].partition_point(begins);
        Places { sorted, next: begin, end }
    }
}

/// Places of entries in order of their keys, from `next` to before `end`.
#[derive(Default)]
struct Places {
    sorted: Arc<[usize]>,
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
        self.0[part_of(key)].entries.get(key).map(|value| &**value)
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
    /// No key may come or go meanwhile.
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
                return Err(PyRuntimeError::new_err("a key came or went during a scan"));
            }
            let (key, value) = part.entry(places.sorted[places.next]);
            places.next += 1;
            return Ok(Some((PyBytes::new(py, key), PyBytes::new(py, value))));
        }
        Ok(None)
    }
}
