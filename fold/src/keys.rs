//! The keys of stored entries (`ledger/projections/entries.py` lists them).

fn joined(parts: &[&str]) -> Vec<u8> {
    let mut key = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        key.extend_from_slice(part.as_bytes());
    }
    key
}

pub fn balances(account: &str) -> Vec<u8> {
    joined(&["\0", account])
}

/// Returns the account whose totals a key is of.
pub fn account(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key.strip_prefix(b"\0")?).ok()
}

pub fn order(account: &str, order_id: &str) -> Vec<u8> {
    joined(&[account, "\0o", order_id])
}

/// Returns how the keys of an order's later fills begin.
pub fn fills(account: &str, order_id: &str) -> Vec<u8> {
    joined(&[account, "\0f", order_id, "\0"])
}

pub fn fill(account: &str, order_id: &str, fill_id: &str) -> Vec<u8> {
    joined(&[account, "\0f", order_id, "\0", fill_id])
}

pub fn amendment(account: &str, order_id: &str, revision: i64) -> Vec<u8> {
    joined(&[account, "\0a", order_id, "\0", &format!("{revision:020}")])
}

pub fn transfer(account: &str, transfer_id: &str) -> Vec<u8> {
    joined(&[account, "\0t", transfer_id])
}
