// Drizzle, over pg and over postgres.js.

const assert = require('node:assert/strict');
const { sql } = require('drizzle-orm');
const pg = require('drizzle-orm/node-postgres');
const { pgTable, text } = require('drizzle-orm/pg-core');
const postgres = require('drizzle-orm/postgres-js');
const version = require('./node-version.cjs');

const { URL: url, OTHER_URL, CLIENT } = process.env;

const place = pgTable('place', { name: text() });
const made = pgTable('made', { client: text() });

async function placeOf(address, { drizzle }) {
    const db = drizzle(address);
    const [{ name }] = await db.select().from(place);
    await db.$client.end();
    return name;
}

async function main() {
    console.log(version('drizzle-orm'));
    for (const driver of [pg, postgres]) {
        assert.equal(await placeOf(url, driver), 'feature/login');
        assert.equal(await placeOf(OTHER_URL, driver), 'other');
    }
    assert.equal(await placeOf(`${url}?sslmode=no-verify`, pg), 'feature/login');
    assert.equal(await placeOf(`${url}?sslmode=require`, postgres), 'feature/login');

    const db = pg.drizzle(url);
    await db.execute(sql`create table made (client text)`);
    await db.insert(made).values({ client: CLIENT });
    assert.equal((await db.select().from(made))[0].client, CLIENT);
    await db.$client.end();
}

main();
