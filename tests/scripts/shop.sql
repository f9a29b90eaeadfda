-- A small shop with foreign keys. The rows follow from their numbers, so that every load gives the same data.
begin;
create schema shop;

create table shop.customers (
    id integer primary key,
    email text not null unique,
    joined date not null
);
create table shop.products (
    id integer primary key,
    name text not null,
    price_cents integer not null check (price_cents > 0)
);
create table shop.orders (
    id integer primary key,
    customer_id integer not null references shop.customers on delete cascade,
    placed timestamptz not null
);
create table shop.order_items (
    order_id integer not null references shop.orders on delete cascade,
    product_id integer not null references shop.products,
    quantity integer not null check (quantity > 0),
    primary key (order_id, product_id)
);

insert into shop.customers
    select i, 'customer' || i || '@example.com', date '2024-01-01' + i % 700 from generate_series(1, 20000) i;
insert into shop.products
    select i, 'Product ' || i, 100 + i * 37 % 9900 from generate_series(1, 2000) i;
insert into shop.orders
    select i, 1 + i * 7919 % 20000, timestamptz '2025-01-01 00:00+00' + i * interval '4 minutes'
    from generate_series(1, 100000) i;
insert into shop.order_items
    select i, 1 + (i * 31 + n * 499) % 2000, 1 + (i + n) % 5
    from generate_series(1, 100000) i, generate_series(1, 3) n;

create index on shop.orders (customer_id);
create index on shop.order_items (product_id);
commit;
analyze shop.customers, shop.products, shop.orders, shop.order_items;
