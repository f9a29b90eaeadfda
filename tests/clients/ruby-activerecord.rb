# ActiveRecord: a model, and the task behind `rails db:create` and `rails db:drop`.

require 'active_record'

CLIENT = ENV.fetch('CLIENT')
URL = ENV.fetch('URL')

def expect(what, found, expected)
  abort("#{what}: #{expected.inspect} was expected, not #{found.inspect}") if found != expected
end

def connect(url)
  ActiveRecord::Base.establish_connection(url)
  ActiveRecord::Base.connection
end

def databases(url)
  connect(url).select_values("select datname from pg_database where datname = 'app_test'")
end

class Made < ActiveRecord::Base
  self.table_name = 'made'
  self.primary_key = 'client'
end

puts ActiveRecord::VERSION::STRING
expect('the other branch', connect(ENV.fetch('OTHER_URL')).select_value('table place'), 'other')
expect('the URL', connect(URL).select_value('table place'), 'feature/login')
secure = connect("#{URL}?sslmode=require")
expect('sslmode=require', secure.select_value('table place'), 'feature/login')

connect(URL).create_table(:made, id: false) { |table| table.text :client }
Made.create!(client: CLIENT)
expect('the row', Made.first.client, CLIENT)

tasks = ActiveRecord::Tasks::DatabaseTasks
test = ActiveRecord::DatabaseConfigurations::UrlConfig.new(
  'test', 'primary', URL.sub(%r{/app\z}, '/app_test'), {}
)
tasks.create(test)
expect('db:create', databases(URL), ['app_test'])
expect('main, after db:create', databases(ENV.fetch('MAIN_URL')), [])
name = connect(test.url).select_value('select current_database()')
expect('the database of its own', name, 'app_test')
tasks.drop(test)
expect('db:drop', databases(URL), [])
