//! Who is next: tenants are served by what they had.
//!
//! As in "Fairness in Serving Large Language Models" (Sheng et al., 2024): every tenant has a count
//! of the tokens that it was given, and the one with the least is next. Who comes back after a pause
//! begins where the least of the others is, so that pauses cannot be saved up. Here there are two
//! levels: keys among each other, and within a key its adapters.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// A token that was written counts as so many that were read: it takes a row of a step of its own.
const WRITTEN: u64 = 2;

/// On whose behalf a request is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tenant {
    /// The name of the key; none where there are no keys.
    pub(crate) key: Option<Arc<str>>,
    /// The name of the adapter, of several with `+` between them; empty for the base.
    pub(crate) adapter: String,
}

/// What a tenant had: the key's tokens, then the adapter's. Less is earlier.
pub(crate) type Standing = (u64, u64);

/// What all tenants had.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    keys: HashMap<Option<Arc<str>>, Account>,
}

/// A key's.
#[derive(Debug, Default)]
struct Account {
    count: Count,
    adapters: HashMap<String, Count>,
}

#[derive(Debug, Default)]
struct Count {
    /// Tokens, as they are charged.
    served: u64,
    /// Requests that wait or run.
    active: usize,
}

impl Count {
    fn enter(&mut self, least: Option<u64>) {
        if self.active == 0 {
            self.served = self.served.max(least.unwrap_or(0));
        }
        self.active += 1;
    }

    /// Whether it is to be kept: it would come back with more than the least of the others has.
    fn is_remembered(&self, least: Option<u64>) -> bool {
        self.active > 0 || least.is_some_and(|least| self.served > least)
    }
}

/// The least that anyone has who waits or runs.
fn least<'a>(counts: impl Iterator<Item = &'a Count>) -> Option<u64> {
    counts.filter(|count| count.active > 0).map(|count| count.served).min()
}

impl Accounts {
    /// A request has come.
    pub(crate) fn enter(&mut self, tenant: &Tenant) {
        let among_keys = least(self.keys.values().map(|key| &key.count));
        let key = self.keys.entry(tenant.key.clone()).or_default();
        key.count.enter(among_keys);
        let among_adapters = least(key.adapters.values());
        key.adapters.entry(tenant.adapter.clone()).or_default().enter(among_adapters);
    }

    /// A request that had come has ended.
    pub(crate) fn leave(&mut self, tenant: &Tenant) {
        let Some(key) = self.keys.get_mut(&tenant.key) else { return };
        key.count.active -= 1;
        if let Some(count) = key.adapters.get_mut(&tenant.adapter) {
            count.active -= 1;
        }
        let among_adapters = least(key.adapters.values());
        key.adapters.retain(|_, count| count.is_remembered(among_adapters));
        let among_keys = least(self.keys.values().map(|key| &key.count));
        self.keys.retain(|_, key| key.count.is_remembered(among_keys));
    }

    /// Tokens were read and written for a tenant.
    pub(crate) fn charge(&mut self, tenant: &Tenant, read: usize, written: usize) {
        let tokens = read as u64 + WRITTEN * written as u64;
        let Some(key) = self.keys.get_mut(&tenant.key) else { return };
        key.count.served += tokens;
        if let Some(count) = key.adapters.get_mut(&tenant.adapter) {
            count.served += tokens;
        }
    }

    /// What a tenant had.
    pub(crate) fn standing(&self, tenant: &Tenant) -> Standing {
        let key = self.keys.get(&tenant.key);
        let adapter = key.and_then(|key| key.adapters.get(&tenant.adapter));
        (key.map_or(0, |key| key.count.served), adapter.map_or(0, |count| count.served))
    }
}

/// Whose rows are meant: a key's, or an adapter's within a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heavy {
    Key(Option<Arc<str>>),
    Adapter(Tenant),
}

impl Heavy {
    pub(crate) fn is_of(&self, tenant: &Tenant) -> bool {
        match self {
            Heavy::Key(key) => tenant.key == *key,
            Heavy::Adapter(heavy) => tenant == heavy,
        }
    }
}

/// Who has so many of the rows that one of them should go to `tenant`: at least two more, so that
/// the row does not come straight back.
pub(crate) fn heavier<'a>(
    tenant: &Tenant,
    rows: impl Iterator<Item = &'a Tenant> + Clone,
) -> Option<Heavy> {
    let by_key = counts(rows.clone().map(|row| &row.key));
    let own = by_key.get(&tenant.key).copied().unwrap_or(0);
    if let Some((key, count)) = most(by_key)
        && count > own + 1
    {
        return Some(Heavy::Key(key.clone()));
    }
    let by_adapter = counts(rows.filter(|row| row.key == tenant.key));
    let own = by_adapter.get(tenant).copied().unwrap_or(0);
    let (heavy, count) = most(by_adapter)?;
    (count > own + 1).then(|| Heavy::Adapter(heavy.clone()))
}

/// The key that has most of the rows.
pub(crate) fn heaviest<'a>(rows: impl Iterator<Item = &'a Tenant>) -> Option<Heavy> {
    most(counts(rows.map(|row| &row.key))).map(|(key, _)| Heavy::Key(key.clone()))
}

fn counts<T: Eq + Hash>(items: impl Iterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    items.for_each(|item| *counts.entry(item).or_insert(0) += 1);
    counts
}

fn most<T>(counts: HashMap<T, usize>) -> Option<(T, usize)> {
    counts.into_iter().max_by_key(|(_, count)| *count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(key: &str, adapter: &str) -> Tenant {
        Tenant { key: Some(key.into()), adapter: adapter.into() }
    }

    #[test]
    fn who_had_least_is_next() {
        let (a, b) = (tenant("a", "x"), tenant("b", "x"));
        let mut accounts = Accounts::default();
        accounts.enter(&a);
        accounts.enter(&b);
        accounts.charge(&a, 100, 10);
        assert_eq!(accounts.standing(&a), (120, 120));
        assert!(accounts.standing(&b) < accounts.standing(&a));
        accounts.charge(&b, 121, 0);
        assert!(accounts.standing(&a) < accounts.standing(&b));
    }

    #[test]
    fn a_key_with_many_adapters_has_no_more_for_it() {
        let mut accounts = Accounts::default();
        let many: Vec<Tenant> = (0..9).map(|i| tenant("many", &i.to_string())).collect();
        let one = tenant("one", "x");
        many.iter().chain([&one]).for_each(|tenant| accounts.enter(tenant));
        many.iter().for_each(|tenant| accounts.charge(tenant, 10, 0));
        accounts.charge(&one, 50, 0);
        assert!(many.iter().all(|tenant| accounts.standing(tenant) > accounts.standing(&one)));
    }

    #[test]
    fn pauses_are_not_saved_up_and_debts_not_forgotten() {
        let (a, b) = (tenant("a", "x"), tenant("b", "x"));
        let mut accounts = Accounts::default();
        accounts.enter(&a);
        accounts.charge(&a, 1000, 0);
        // Comes late: begins where the other is, not at nothing.
        accounts.enter(&b);
        assert_eq!(accounts.standing(&b).0, 1000);
        accounts.charge(&b, 500, 0);
        accounts.leave(&b);
        accounts.enter(&b);
        assert_eq!(accounts.standing(&b).0, 1500);
        accounts.leave(&b);
        accounts.leave(&a);
        assert!(accounts.keys.is_empty());
    }

    #[test]
    fn rows_are_taken_from_who_has_two_more() {
        let (a, b) = (tenant("a", "x"), tenant("b", "x"));
        let rows = |counts: [usize; 2]| {
            let rows = [&a, &b].into_iter().zip(counts);
            rows.flat_map(|(tenant, count)| std::iter::repeat_n(tenant, count)).collect::<Vec<_>>()
        };
        let of_b = |counts| heavier(&b, rows(counts).into_iter());
        assert_eq!(of_b([2, 0]), Some(Heavy::Key(a.key.clone())));
        assert_eq!(of_b([4, 2]), Some(Heavy::Key(a.key.clone())));
        assert_eq!(of_b([1, 0]), None);
        assert_eq!(of_b([3, 2]), None);
        // Within a key it goes by adapters.
        let (x, y) = (tenant("a", "x"), tenant("a", "y"));
        let rows = [&x, &x, &x];
        assert_eq!(heavier(&y, rows.into_iter()), Some(Heavy::Adapter(x.clone())));
        assert_eq!(heavier(&x, rows.into_iter()), None);
    }
}
